"""Reading Z itself against reading keys and values of it: one result, and the one that takes less is chosen."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from deepmlf_llm.modules.context_reading import AbsorbedKeyValues, KeyValues, absorbing_takes_less

SIZES = st.integers(1, 6)


def both(b, t, d, h, n, e, dtype=torch.float64):
    """Z, weights, a query, and both readers of them; all want gradients."""
    frames, weights, query = torch.randn(b, t, d), torch.randn(d, 2 * h * e), torch.randn(b, h, n, e)
    frames, weights, query = (x.to(dtype).requires_grad_() for x in (frames, weights, query))
    return (frames, weights, query), KeyValues(frames @ weights), AbsorbedKeyValues(frames, weights)


@given(b=SIZES, t=SIZES, d=SIZES, h=SIZES, n=SIZES, e=SIZES, each=st.booleans(), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_both_give_the_same_and_the_same_gradients(b, t, d, h, n, e, each, seed):
    torch.manual_seed(seed)
    inputs, *readers = both(b, t, d, h, n, e)
    mask = torch.rand(b, 1, n if each else 1, t) < 0.5
    mask[..., 0] = True
    found = [reader.attend(inputs[-1], mask) for reader in readers]
    assert found[0].shape == (b, n, h, e)
    assert_close(*found)
    wanted = torch.randn_like(found[0])
    assert_close(*(torch.autograd.grad(out, inputs, wanted) for out in found))


def test_in_half_precision_both_round_alike():
    inputs, *readers = both(4, 50, 30, 9, 8, 64, torch.float32)
    query, mask = inputs[-1] * 0.1, torch.ones(4, 1, 1, 50).bool()
    exact = readers[0].attend(query, mask)
    apart = [(r.attend(query.bfloat16(), mask).float() - exact).norm() / exact.norm() for r in readers]
    assert max(apart) < 0.02


@pytest.mark.parametrize("kind", [0, 1])
def test_dropout_is_of_the_attention_weights(kind):
    """One frame: its weight of 1 is dropped whole, or doubled."""
    inputs, *readers = both(8, 1, 3, 2, 8, 4)
    mask = torch.ones(8, 1, 1, 1).bool()
    share = readers[kind].attend(inputs[-1], mask, 0.5) / readers[kind].attend(inputs[-1], mask)
    assert_close(share, share.round())
    assert set(share.round().unique().tolist()) == {0.0, 2.0}


@given(b=st.integers(2, 6), t=st.integers(2, 80), d=st.integers(2, 80), n=st.integers(2, 40), e=st.integers(2, 80))
@settings(deadline=None, max_examples=60)
def test_the_one_that_is_chosen_takes_fewer_flops(b, t, d, n, e):
    def flops(project, read):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
            read(project())
        return counter.get_total_flops()

    frames, weights, query = torch.randn(b, t, d), torch.randn(d, 2 * e), torch.randn(b, 1, n, e)
    mask, unit = torch.ones(b, 1, 1, t).bool(), torch.eye(d)
    plain = flops(lambda: frames @ weights, lambda x: KeyValues(x).attend(query, mask))
    absorbed = flops(lambda: unit @ weights, lambda x: AbsorbedKeyValues(frames, x).attend(query, mask))
    assert absorbing_takes_less(b, t, d, n, e) == (absorbed < plain)
