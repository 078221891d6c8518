"""Time pooling against windows that are cut by hand."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from deepmlf_llm.modules import pool_time
from tests import reference


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 3))
def test_pooling_takes_contiguous_windows_that_cover_every_frame(length, out, padding):
    x = torch.arange(1.0, length + 1).double().reshape(1, -1, 1)
    padded = torch.cat([x, torch.full((1, padding, 1), 1e9).double()], dim=1)
    mask = torch.arange(length + padding)[None] < length
    found = pool_time(padded, mask, torch.tensor([out]), out + 2)
    assert_close(found[:, :out], reference.pool(x[0], out)[None])
    assert not found[:, out:].count_nonzero()
    assert_close(found[0, :out], torch.nn.functional.adaptive_avg_pool1d(x[0].T, out).T)
    assert (found[0, :out].diff(dim=0) >= 0).all(), "time keeps its order"


def test_padding_may_hold_anything():
    x = torch.tensor([[[1.0], [float("nan")], [3.0], [float("inf")]]])
    found = pool_time(x, torch.tensor([[True, False, True, False]]), torch.tensor([1]), 2)
    assert found.flatten().tolist() == [2.0, 0.0]
