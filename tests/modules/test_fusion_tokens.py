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


def test_frozen_ones_are_the_same_draws_and_no_parameter():
    torch.manual_seed(3)
    trained = FusionTokens(3, 4)
    torch.manual_seed(3)
    frozen = FusionTokens(3, 4, frozen=True)
    assert not list(frozen.parameters())
    assert torch.equal(frozen.state_dict()["embedding.weight"], trained.embedding.weight)
    assert torch.equal(frozen(2), trained(2))
    trained.load_state_dict(frozen.state_dict())  # and either takes what the other stored


def test_scaled_ones_stand_among_states_and_move_in_their_measure():
    torch.manual_seed(3)
    tokens = FusionTokens(2000, 3, scaled=True)
    weight = tokens.embedding.weight.detach().clone()
    states = torch.tensor([[5.0, -1.0, 0.0], [7.0, -1.2, 80.0], [9.0, -1.4, 160.0]])
    tokens.stand_among(states)
    assert torch.equal(tokens.embedding.weight, weight)
    torch.testing.assert_close(
        tokens(1)[0], torch.tensor([7.0, -1.2, 80.0]) + weight / 0.02 * torch.tensor([2, 0.2, 80])
    )
    tokens(1).sum().backward()
    torch.testing.assert_close(tokens.embedding.weight.grad[0], torch.tensor([100.0, 10.0, 4000.0]))
    assert [name for name, _ in tokens.named_parameters()] == ["embedding.weight"]
