from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepmlf_llm.modules.missing import drop_frames, drop_rows


@st.composite
def masks_and_draws(draw):
    rows, length = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    mask = draw(st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=rows, max_size=rows))
    numbers = st.floats(0, 1, exclude_max=True)
    draws = draw(st.lists(st.lists(numbers, min_size=length, max_size=length), min_size=rows, max_size=rows))
    return torch.tensor(mask), torch.tensor(draws, dtype=torch.float64)


@given(masks_and_draws(), st.floats(0, 1, exclude_max=True))
def test_frames_below_the_rate_go_and_one_always_stays(given_value, rate):
    mask, draws = given_value
    kept = drop_frames(mask, draws, rate)
    for row in range(len(mask)):
        real = [t for t in range(mask.shape[1]) if mask[row, t]]
        expected = [t for t in real if draws[row, t] >= rate]
        if real and not expected:
            largest = max(draws[row, t].item() for t in real)
            expected = [t for t in real if draws[row, t] == largest]
        assert kept[row].nonzero().flatten().tolist() == expected


def test_a_row_goes_whole_or_stays_as_it_is():
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False], [True, True, True]])
    kept = drop_rows(mask, torch.tensor([0.29, 0.3, 0.9, 0.0]), 0.3)
    assert torch.equal(kept, mask & torch.tensor([False, True, True, False])[:, None])


@pytest.mark.parametrize("drop", [lambda m, d: drop_frames(m, d, 0.0), lambda m, d: drop_rows(m, d[:, 0], 0.0)])
def test_at_zero_nothing_goes(drop):
    mask = torch.rand(5, 7) < 0.6
    assert torch.equal(drop(mask, torch.zeros(5, 7)), mask)
