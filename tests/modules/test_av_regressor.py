"""The AV encoder alone: what its head reads, against sums over frames written out."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from deepmlf_llm.modules import AVEncoder, AVRegressor

MASKS = {"a": [[1, 1, 1], [1, 0, 0], [0, 0, 0]], "b": [[1, 1], [0, 0], [0, 0]]}


def features():
    masks = {name: torch.tensor(rows).bool() for name, rows in MASKS.items()}
    return {name: (torch.randn(*mask.shape, 4), mask) for name, mask in masks.items()}


@pytest.mark.parametrize("readout", ["mean", "last"])
def test_one_linear_head_on_the_mean_or_the_last_real_frame(readout):
    model = AVRegressor(AVEncoder({"a": 4, "b": 4}, width=12, num_layers=1, num_heads=2), 12, readout).eval()
    given = features()
    context = model.encoder(given)
    for row, found in enumerate(model(given)):
        real = context.frames[row][context.mask[row]]
        read = torch.zeros(12) if not len(real) else real[-1] if readout == "last" else real.sum(dim=0) / len(real)
        assert_close(found, model.head.weight @ read + model.head.bias)
    assert context.mask.sum(dim=1).tolist() == [3, 1, 0]


def test_what_lies_in_padding_changes_nothing():
    model = AVRegressor(AVEncoder({"a": 4, "b": 4}, width=12, num_layers=1, num_heads=2), 12, "last").eval()
    given = features()
    spoilt = {name: (x.masked_fill(~mask[..., None], float("nan")), mask) for name, (x, mask) in given.items()}
    assert torch.equal(model(given), model(spoilt))
