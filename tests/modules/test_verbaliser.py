"""The expected value over the steps, against the sum that it is."""

from __future__ import annotations

import math

import pytest
import torch

from deepmlf_llm.modules import Verbaliser

VALUES = (-1.0, -0.25, 2.0)


@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("biased", [True, False])
def test_is_the_expectation_over_the_steps(cap, biased):
    weight, states = torch.randn(3, 6).double(), torch.randn(4, 6).double()
    bias = torch.randn(3).double() if biased else None
    found = Verbaliser(weight, bias, VALUES, cap)(states)
    assert found.shape == (4, 1)
    for row, state in enumerate(states.tolist()):
        logits = [sum(w * x for w, x in zip(weight[k].tolist(), state, strict=True)) for k in range(3)]
        logits = [z + bias[k].item() for k, z in enumerate(logits)] if biased else logits
        logits = [cap * math.tanh(z / cap) for z in logits] if cap else logits
        total = sum(math.exp(z) for z in logits)
        expected = sum(math.exp(z) / total * v for z, v in zip(logits, VALUES, strict=True))
        assert found[row].item() == pytest.approx(expected, abs=1e-12)


def test_what_is_the_base_models_is_in_no_file_and_is_not_trained():
    verbaliser = Verbaliser(torch.randn(3, 6), torch.randn(3), VALUES)
    assert not verbaliser.state_dict()
    assert not list(verbaliser.parameters())
    assert {buffer.dtype for buffer in verbaliser.double().buffers()} == {torch.float64}
