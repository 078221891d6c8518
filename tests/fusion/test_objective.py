"""Each loss against its formula in float64."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from deepmlf_llm.config.method import ObjectiveConfig
from deepmlf_llm.fusion import objective
from deepmlf_llm.fusion.objective import combine_losses, next_token_loss
from deepmlf_llm.modules.heads import Predictions

B, N = 4, 3


def predictions(outputs=1):
    shapes = {"task": (B, outputs), "fusion": (B, N, outputs), "text": (B, outputs), "av": (B, outputs)}
    return Predictions(**{name: torch.randn(shape).double().requires_grad_() for name, shape in shapes.items()})


@pytest.mark.parametrize("kind", ["l1", "mse"])
@pytest.mark.parametrize("present", [[True] * B, [True, False, True, False], [False] * B])
def test_the_sum_and_its_parts(present, kind):
    config = ObjectiveConfig(lambda_fusion=0.3, lambda_av=0.5, lambda_text=0.7, gamma=1.1, loss=kind)
    p, y, lm = predictions(), torch.randn(B).double(), torch.tensor(2.5).double()
    total, parts = combine_losses(config, p, y, torch.tensor(present), lm)

    def error(prediction, target):
        return abs(prediction - target) if kind == "l1" else (prediction - target) ** 2

    expected = {
        "task": sum(error(p.task[i, 0], y[i]) for i in range(B)) / B,
        "fusion": sum(error(p.fusion[i, k, 0], y[i]) for i in range(B) for k in range(N)) / (B * N),
        "text": sum(error(p.text[i, 0], y[i]) for i in range(B)) / B,
        "av": sum((error(p.av[i, 0], y[i]) for i in range(B) if present[i]), torch.zeros(())) / max(sum(present), 1),
        "lm": lm,
    }
    assert parts.keys() == expected.keys()
    for name, part in expected.items():
        assert_close(parts[name], part.double(), msg=name)
    weights = {"task": 1.0, "fusion": 0.3, "av": 0.5, "text": 0.7, "lm": 1.1}
    assert_close(total, sum(weights[name] * part.double() for name, part in expected.items()))
    total.backward()
    assert all(x.grad.isfinite().all() for x in (p.task, p.fusion, p.text, p.av))
    assert not p.av.grad[~torch.tensor(present)].count_nonzero()


def test_without_a_language_model_loss():
    total, parts = combine_losses(ObjectiveConfig(), predictions(), torch.randn(B), torch.ones(B).bool())
    assert list(parts) == ["task", "fusion", "av", "text"]
    assert total.dtype == torch.float64


def test_several_outputs():
    p, y = predictions(2), torch.randn(B, 2)
    _, parts = combine_losses(ObjectiveConfig(), p, y, torch.ones(B).bool())
    assert_close(parts["fusion"], (p.fusion - y[:, None]).abs().mean())
    assert_close(parts["av"], (p.av - y).abs().mean())


class Readout(nn.Module):
    """Vocabulary of 11 from states of width 5; counts its calls."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 11, bias=False).double()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.linear(x)


def by_hand(readout, states, ids, mask):
    losses = []
    for row in range(len(ids)):
        real = mask[row].nonzero().flatten()
        for here, there in pairwise(real):
            score = states[row, here] @ readout.linear.weight.T
            losses.append(score.exp().sum().log() - score[ids[row, there]])
    return losses


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.booleans())
def test_every_real_token_but_the_last_predicts_the_next_real_one(lengths, right):
    torch.manual_seed(0)
    readout, rows = Readout(), len(lengths)
    ids, states = torch.randint(0, 11, (rows, 6)), torch.randn(rows, 6, 5).double()
    mask = (torch.arange(6) < torch.tensor(lengths)[:, None]).long()
    mask = mask if right else mask.flip(1)
    losses = by_hand(readout, states, ids, mask)
    assert len(losses) == sum(lengths) - rows
    expected = torch.stack(losses).mean() if losses else torch.zeros(()).double()
    found = next_token_loss(readout, states, ids, mask)
    assert found.dtype == torch.float32
    assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_the_formula_without_keeping_logits():
    torch.manual_seed(0)
    readout = Readout()
    ids, states = torch.randint(0, 11, (3, 6)), torch.randn(3, 6, 5).double().requires_grad_()
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]])
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        loss = next_token_loss(readout, states, ids, mask)
    assert not any(shape[-1:] == (11,) for shape in kept)
    loss.backward()
    found, states.grad = states.grad, None
    torch.stack(by_hand(readout, states, ids, mask)).mean().backward()
    assert_close(found, states.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("length", [1, 2, 40])
def test_ranks_with_other_batches_call_the_readout_equally_often(length):
    """Under ZeRO-3 each call gathers the output embeddings from all ranks: another number of them would hang."""
    readout = Readout()
    next_token_loss(readout, torch.randn(2, length, 5).double(), torch.ones(2, length).long(), torch.ones(2, length))
    assert readout.calls == objective.LOGIT_CHUNKS
