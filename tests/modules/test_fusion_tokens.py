"""Learnable rows after the text."""

from __future__ import annotations

import torch

from deepmlf_llm.modules import FusionTokens


def test_tokens_start_normal_with_standard_deviation_0_02():
    weight = FusionTokens(200, 300).embedding.weight
    assert abs(weight.mean().item()) < 5e-4
    assert abs(weight.std().item() - 0.02) < 5e-4


def test_every_sample_gets_the_same_tokens_and_all_send_gradients_back():
    tokens = FusionTokens(3, 4)
    out = tokens(5)
    assert out.shape == (5, 3, 4)
    assert tokens.num_tokens == 3
    assert all(torch.equal(row, tokens.embedding.weight) for row in out)
    out.sum().backward()
    assert torch.equal(tokens.embedding.weight.grad, torch.full((3, 4), 5.0))


def test_one_parameter_that_zero3_can_gather():
    assert [name for name, _ in FusionTokens(3, 4).named_parameters()] == ["embedding.weight"]
