"""Gated cross-attention against the textbook formula, and its promises about absence and padding."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from deepmlf_llm.modules import Gate, GatedCrossAttention
from deepmlf_llm.modules.context_reading import KeyValues
from deepmlf_llm.modules.cross_attention import GATES

B, N, T, D, H = 3, 4, 7, 24, 4


@pytest.fixture
def gca():
    return GatedCrossAttention(D, H).double()


@pytest.fixture
def inputs():
    mask = torch.arange(T) < torch.tensor([T, 3, 0])[:, None]  # full, padded, absent
    return torch.randn(B, N, D).double(), torch.randn(B, T, 2 * D).double(), mask


OPENING = {"sigmoid": 1 / (1 + math.exp(-0.75)), "tanh": math.sinh(0.75) / math.cosh(0.75), "none": 1.0}


@pytest.mark.parametrize("kind", OPENING)
@pytest.mark.parametrize("head_width", [None, 5])
def test_equals_the_textbook_formula(head_width, kind):
    gca, e = GatedCrossAttention(D, H, head_width, kind).double(), head_width or D // H
    tokens, key_value = torch.randn(B, N, D).double(), torch.randn(B, T, 2 * H * e).double()
    mask = torch.arange(T) < torch.tensor([T, 3, 1])[:, None]
    with torch.no_grad():
        gca.gate.alpha.fill_(0.75)
    update = gca(tokens, KeyValues(key_value), mask)
    for b, frames in enumerate(mask.sum(-1).tolist()):
        key, value = key_value[b, :frames, : H * e], key_value[b, :frames, H * e :]
        query = tokens[b] @ gca.mm_query.weight.T
        heads = []
        for i in range(H):
            part = slice(i * e, (i + 1) * e)
            score = query[:, part] @ key[:, part].T / e**0.5
            heads.append((score.exp() / score.exp().sum(-1, keepdim=True)) @ value[:, part])
        expected = OPENING[kind] * torch.cat(heads, -1) @ gca.mm_output.weight.T
        assert_close(update[b], expected, rtol=0, atol=1e-13)


def test_an_absent_modality_adds_exactly_nothing_and_keeps_gradients_finite(gca, inputs):
    tokens, key_value, mask = (x.requires_grad_() if x.is_floating_point() else x for x in inputs)
    update = gca(tokens, KeyValues(key_value), mask)
    assert torch.equal(update[2], torch.zeros_like(update[2]))
    update.sum().backward()
    assert all(p.grad.isfinite().all() for p in gca.parameters())
    assert key_value.grad[2].count_nonzero() == 0


def test_padding_is_never_read(gca, inputs):
    tokens, key_value, mask = inputs
    noisy = torch.where(mask[..., None], key_value, torch.full_like(key_value, 1e4))
    assert_close(gca(tokens, KeyValues(noisy), mask), gca(tokens, KeyValues(key_value), mask), rtol=0, atol=0)
    jacobian = torch.autograd.functional.jacobian(lambda kv: gca(tokens, KeyValues(kv), mask).sum(), key_value)
    assert jacobian[~mask].count_nonzero() == 0


def test_a_sample_does_not_depend_on_its_batch(gca, inputs):
    tokens, key_value, mask = inputs
    assert_close(
        gca(tokens, KeyValues(key_value), mask)[1], gca(tokens[1:2], KeyValues(key_value[1:2, :3]), mask[1:2, :3])[0]
    )


def test_no_bias_anywhere():
    assert {name for name, _ in GatedCrossAttention(D, H).named_parameters()} == {
        "mm_query.weight", "mm_output.weight", "gate.alpha"
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "opens_at"), [("sigmoid", 0.5), ("tanh", 0.0), ("none", 1.0)])
def test_a_gate_opens_where_its_kind_says(kind, opens_at):
    gate = Gate(kind)
    assert gate().item() == opens_at
    assert gate().shape == ()
    assert gate.alpha.requires_grad is (kind != "none")
    gate.shut = True
    assert gate().item() == 0.0
    gate.shut = False
    assert gate().item() == opens_at


def test_a_gate_per_channel_weighs_each_channel_by_its_own_value():
    gca = GatedCrossAttention(D, H, gate=Gate("sigmoid", -2.0, D)).double()
    one = GatedCrossAttention(D, H).double()
    one.load_state_dict({**gca.state_dict(), "gate.alpha": torch.zeros(1)})
    with torch.no_grad():
        gca.gate.alpha[1] = 3.0
    tokens, key_value, mask = torch.randn(2, 3, D).double(), torch.randn(2, 4, 2 * D).double(), torch.ones(2, 4).bool()
    opens_at = torch.full((D,), 1 / (1 + math.exp(2.0))).double()
    opens_at[1] = 1 / (1 + math.exp(-3.0))
    assert_close(
        gca(tokens, KeyValues(key_value), mask),
        2 * opens_at * one(tokens, KeyValues(key_value), mask),
        rtol=1e-6,
        atol=0,
    )
    gca.gate.shut = True
    assert not gca(tokens, KeyValues(key_value), mask).any()


def test_unknown_gate_is_refused_by_name():
    with pytest.raises(ValueError, match=r"gate='relu': expected one of 'sigmoid', 'tanh', 'none'"):
        Gate("relu")
    assert set(GATES) == {"sigmoid", "tanh", "none"}


def test_width_that_no_head_divides_is_refused_unless_head_width_is_set():
    with pytest.raises(ValueError, match="width=25 is not a multiple of num_heads=4"):
        GatedCrossAttention(25, 4)
    assert GatedCrossAttention(25, 4, head_width=8).mm_output.weight.shape == (25, 32)


def test_dropout_acts_on_attention_and_output_in_training_only(inputs):
    tokens, key_value, mask = inputs
    plain, gca = GatedCrossAttention(D, H).double(), GatedCrossAttention(D, H, dropout=0.5).double()
    gca.load_state_dict(plain.state_dict())
    assert torch.equal(gca.eval()(tokens, KeyValues(key_value), mask), plain(tokens, KeyValues(key_value), mask))
    found = gca.train()(tokens, KeyValues(key_value), mask)
    assert 0.3 < (found[:2] == 0).double().mean() < 0.7  # of the output
    assert not found[2].count_nonzero()
    with torch.no_grad():  # one frame: its weight of 1 is dropped whole, or doubled
        gca.dropout = torch.nn.Identity()
        gca.dropout.p = 0.5
        values = torch.ones_like(key_value)
        gca.mm_output.weight.copy_(torch.eye(D))
        read = gca(tokens, KeyValues(values), torch.arange(T)[None].expand(B, T) == 0) / gca.gate()
    assert set(read.unique().tolist()) == {0.0, 2.0}


def test_without_dropout_training_is_evaluation(inputs):
    gca = GatedCrossAttention(D, H).double()
    state = torch.get_rng_state()
    tokens, key_value, mask = inputs
    given = tokens, KeyValues(key_value), mask
    assert torch.equal(gca.train()(*given), gca.eval()(*given))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_gate_stays_in_fp32(inputs, device):
    tokens, key_value, mask = inputs
    gca = GatedCrossAttention(D, H)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert gca(tokens.float(), KeyValues(key_value.float()), mask).dtype == torch.bfloat16
        assert gca.gate().dtype == torch.float32
    assert gca.bfloat16().gate().dtype == torch.float32


def test_beside_an_fp64_lm_the_gate_is_fp64():
    gate = Gate().double()
    with torch.no_grad():
        gate.alpha.fill_(0.1)
    assert gate().item() == pytest.approx(1 / (1 + math.exp(-0.1)), abs=1e-16)
    gate.shut = True
    assert (gate().dtype, gate().item()) == (torch.float64, 0.0)
