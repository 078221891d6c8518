from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from deepmlf_llm.modules.mixup import blend_frames, draw_partners, partner_probabilities


def test_partners_are_as_likely_as_the_paper_says():
    labels, sigma = [1.0, 1.5, -2.0, 1.0], 0.5
    may_pair = torch.ones(4, 4).bool()
    may_pair[0, 3] = may_pair[2, 2] = False  # the second makes no difference: an example may stay itself
    found = partner_probabilities(torch.tensor(labels), may_pair, sigma)
    for i in range(4):
        weights = [math.exp(-((labels[i] - y) ** 2) / (2 * sigma**2)) for y in labels]
        if i == 0:
            weights[3] = 0.0
        assert found[i].tolist() == pytest.approx([w / sum(weights) for w in weights])


def test_partners_are_drawn_by_their_probability():
    probabilities = torch.tensor([[0.2, 0.0, 0.5, 0.3]], dtype=torch.float64).expand(10_000, 4)
    draw = torch.rand(10_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = draw_partners(probabilities, draw).bincount(minlength=4) / 10_000
    assert found.tolist() == pytest.approx([0.2, 0.0, 0.5, 0.3], abs=0.02)
    edge = draw_partners(
        torch.tensor([[0.0, 1.0 - 1e-16, 0.0]], dtype=torch.float64), torch.tensor([0.9999999999999999])
    )
    assert edge.tolist() == [1]


@st.composite
def batches(draw):
    rows, length = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    mask = draw(st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=rows, max_size=rows))
    partner = draw(st.lists(st.integers(0, rows - 1), min_size=rows, max_size=rows))
    factor = draw(st.lists(st.floats(0, 1), min_size=rows, max_size=rows))
    return torch.tensor(mask), torch.tensor(partner), torch.tensor(factor, dtype=torch.float64)


@given(batches(), st.integers(0, 50))
def test_frames_are_blended_with_those_of_the_same_part_of_the_other_utterance(batch, seed):
    mask, partner, factor = batch
    frames = torch.randn(*mask.shape, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    frames = frames.masked_fill(~mask[..., None], torch.nan)  # padding may hold anything
    found = blend_frames(frames, mask, partner, factor)
    for i in range(len(mask)):
        own, other = frames[i][mask[i]], frames[partner[i]][mask[partner[i]]]
        expected = own.clone()
        for r in range(len(own) if len(other) else 0):
            met = other[math.floor((r + 0.5) * len(other) / len(own))]
            expected[r] = factor[i] * own[r] + (1 - factor[i]) * met
        assert_close(found[i][mask[i]], expected)
        assert found[i][~mask[i]].isnan().all()
