"""SeqAug: one permutation a batch, real steps only, a Bernoulli subset of dimensions a sample, applied with p_apply."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepmlf_llm.modules import seqaug
from deepmlf_llm.modules.seqaug import permute_real_steps


@st.composite
def masks(draw):
    length = draw(st.integers(1, 7))
    rows = draw(st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=1, max_size=4))
    return torch.tensor(rows)


@given(masks(), st.integers(0, 100))
def test_real_steps_are_permuted_among_themselves_and_padding_stays(mask, seed):
    keys = torch.rand(mask.shape[1], generator=torch.Generator().manual_seed(seed))
    source = permute_real_steps(mask, keys)
    for row in range(len(mask)):
        real = mask[row].nonzero().flatten()
        assert source[row][real].sort().values.tolist() == real.tolist()
        padded = (~mask[row]).nonzero().flatten()
        assert source[row][padded].tolist() == padded.tolist()


@given(masks(), st.integers(0, 100))
def test_the_batch_shares_one_permutation(mask, seed):
    """Each row takes the order of one list of keys, cut to its own number of real steps."""
    keys = torch.rand(mask.shape[1], generator=torch.Generator().manual_seed(seed))
    source = permute_real_steps(mask, keys)
    for row in range(len(mask)):
        real = mask[row].nonzero().flatten()
        order = sorted(range(len(real)), key=lambda rank: keys[rank].item())
        assert source[row][real].tolist() == [real[rank].item() for rank in order]


@given(masks(), st.floats(0.1, 1.0), st.integers(0, 100))
def test_each_dimension_is_either_permuted_whole_or_untouched_whatever_padding_holds(mask, p_feat, seed):
    steps = torch.arange(1.0, mask.shape[1] + 1)[None, :, None]
    x = steps.expand(len(mask), -1, 9).masked_fill(~mask[..., None], torch.nan)
    torch.manual_seed(seed)
    out = seqaug(x, mask, p_apply=1.0, p_feat=p_feat)
    assert torch.equal(out.isnan(), x.isnan()), "padding neither moves nor is read"
    for row in range(len(mask)):
        real, before = out[row][mask[row]].T.tolist(), x[row][mask[row]].T.tolist()
        moved = [dimension for dimension, old in zip(real, before, strict=True) if dimension != old]
        assert all(sorted(dimension) == before[0] for dimension in moved), "a permutation of the row's real steps"
        assert all(dimension == moved[0] for dimension in moved), "one for all chosen dimensions"


def test_every_permutation_is_as_likely():
    counts = {}
    for _ in range(1200):
        source = permute_real_steps(torch.ones(1, 3).bool(), torch.rand(3))
        counts[tuple(source[0].tolist())] = counts.get(tuple(source[0].tolist()), 0) + 1
    assert len(counts) == 6
    assert min(counts.values()) > 140


def test_chosen_dimensions_are_permuted_the_others_untouched():
    x = torch.arange(2 * 5 * 400.0).reshape(2, 5, 400)
    mask = torch.tensor([[False, True, True, True, True], [True] * 5])
    torch.manual_seed(3)
    out = seqaug(x, mask, p_apply=1.0, p_feat=0.25)
    assert out.shape == x.shape
    chosen = []
    for row in range(2):
        moved = (out[row] != x[row]).any(0)
        sources = {
            tuple((x[row, :, k][None] == out[row, :, k][:, None]).int().argmax(1).tolist())
            for k in moved.nonzero().flatten()
        }
        assert len(sources) == 1, "one permutation for all chosen dimensions of a sample"
        chosen.append(moved)
        assert 0.15 < moved.float().mean() < 0.35
    assert not torch.equal(*chosen), "each sample draws its own dimensions"
    assert torch.equal(out[0, 0], x[0, 0]), "padding"


def test_p_apply_is_drawn_once_a_batch():
    x = torch.randn(8, 6, 50)
    mask = torch.ones(8, 6).bool()
    augmented = 0
    for _ in range(300):
        changed = (seqaug(x, mask, p_apply=0.3, p_feat=0.5) != x).flatten(1).any(1)
        assert changed.all() or not changed.any()
        augmented += int(changed.any())
    assert 60 < augmented < 120


@pytest.mark.parametrize(("p_apply", "p_feat"), [(0.0, 0.5), (0.5, 0.0)])
def test_off_returns_the_input_itself(p_apply, p_feat):
    x = torch.randn(2, 3, 4)
    assert seqaug(x, torch.ones(2, 3).bool(), p_apply, p_feat) is x


def test_all_dimensions_at_p_feat_one_and_dtype_kept():
    x = torch.arange(12.0).reshape(1, 6, 2).bfloat16()
    out = seqaug(x, torch.ones(1, 6), p_apply=1.0, p_feat=1.0)
    assert out.dtype == torch.bfloat16
    assert sorted(out[0, :, 0].tolist()) == sorted(x[0, :, 0].tolist())
    assert torch.equal(out[0, :, 1], out[0, :, 0] + 1), "whole frames move"


def test_gradients_pass():
    x = torch.randn(2, 4, 6, requires_grad=True)
    seqaug(x, torch.ones(2, 4).bool(), 1.0, 0.5).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
