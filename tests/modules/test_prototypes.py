"""Ordinal prototypes: targets and probabilities against their formulas; training orders them along the polarity."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from deepmlf_llm.modules.prototypes import OrdinalPrototypes, ordinal_targets

VALUES = (-3.0, -1.0, 1.0, 3.0)


def test_targets_fall_with_the_distance_in_steps():
    labels = torch.tensor([-3.0, 0.0, 2.4]).double()
    found = ordinal_targets(labels, VALUES)
    for row, y in enumerate(labels.tolist()):
        weights = [math.exp(-abs(y - v) / 2.0) for v in VALUES]
        assert found[row].tolist() == pytest.approx([w / sum(weights) for w in weights], abs=1e-12)


def test_probabilities_are_a_softmax_of_cosines():
    prototypes, states = OrdinalPrototypes(5, VALUES).double(), torch.randn(3, 5).double()
    found = prototypes(states).exp()
    for row, x in enumerate(states):
        cosines = torch.stack([x @ c / (x.norm() * c.norm()) for c in prototypes.weight])
        expected = (cosines / 0.2).exp() / (cosines / 0.2).exp().sum()
        assert_close(found[row], expected)
    assert_close(prototypes(7 * states), prototypes(states))  # the length of a state says nothing


def test_they_start_in_their_order():
    weight = OrdinalPrototypes(64, VALUES).weight
    assert_close(weight.norm(dim=-1), torch.ones(4))
    likeness = weight @ weight.T
    assert all(likeness[0, k] > likeness[0, k + 1] for k in range(3))
    assert all(likeness[3, k] < likeness[3, k + 1] for k in range(3))


def test_states_that_follow_the_loss_lie_in_the_order_of_their_labels():
    labels = torch.tensor([-3.0, -1.5, 0.0, 1.5, 3.0])
    prototypes, states = OrdinalPrototypes(8, VALUES), torch.randn(5, 8, requires_grad=True)
    optimizer = torch.optim.Adam([states, *prototypes.parameters()], lr=0.05)
    for _ in range(100):
        loss = -(ordinal_targets(labels, VALUES) * prototypes(states)).sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    along = (prototypes(states).exp() * torch.tensor(VALUES)).sum(dim=1)
    assert (along.diff() > 0.3).all()
