"""Each loss against its formula in float64."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from deepmlf_llm.config.sections import ObjectiveConfig
from deepmlf_llm.fusion import objective
from deepmlf_llm.fusion.objective import LossTerm, combine, loss_terms, next_token_sum, predicts_next, term_counts
from deepmlf_llm.modules.heads import Predictions

B, N = 4, 3
MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1], [0, 1, 1, 1]])  # 1 + 3 + 0 + 2 tokens to predict
ALL = torch.ones(B).bool()


STEPS = (-3.0, 0.0, 3.0)


def predictions(outputs=1, auxiliary=False):
    shapes = {"task": (B, outputs), "fusion": (B, N, outputs), "text": (B, outputs), "av": (B, outputs)}
    if auxiliary:
        shapes |= {"verbalised": (B, 1), "is_positive": (B, 1), "near": (B, len(STEPS))}
    return Predictions(
        **{name: torch.randn(shape).double().requires_grad_() for name, shape in shapes.items()}, steps=STEPS
    )


@pytest.mark.parametrize("kind", ["l1", "mse"])
@pytest.mark.parametrize("present", [[True] * B, [True, False, True, False], [False] * B])
def test_the_sum_and_its_parts(present, kind):
    config = ObjectiveConfig(lambda_fusion=0.3, lambda_av=0.5, lambda_text=0.7, gamma=1.1, loss=kind)
    p, y, lm = predictions(), torch.randn(B).double(), torch.tensor(2.5).double()
    terms = loss_terms(config, p, y, MASK, torch.tensor(present), lambda: 6 * lm)
    total, parts = combine(terms)

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
        assert_close(parts[name], part.double(), rtol=0, atol=1e-14, msg=name)
    weights = {"task": 1.0, "fusion": 0.3, "av": 0.5, "text": 0.7, "lm": 1.1}
    assert {term.name: term.weight for term in terms} == weights
    assert_close(total, sum(weights[name] * part.double() for name, part in expected.items()), rtol=0, atol=1e-14)
    total.backward()
    assert all(x.grad.isfinite().all() for x in (p.task, p.fusion, p.text, p.av))
    assert not p.av.grad[~torch.tensor(present)].count_nonzero()


def test_auxiliary_terms():
    """Each against its sum; the sign over labels that are not 0; nothing without a head that says it."""
    config = ObjectiveConfig(lambda_polarity=0.05, lambda_prototypes=0.3)
    p, y = predictions(auxiliary=True), torch.tensor([1.5, 0.0, -2.0, 0.0]).double()
    total, parts = combine(loss_terms(config, p, y, MASK, ALL))
    plain, _ = combine(loss_terms(config, Predictions(p.task, p.fusion, p.text, p.av), y, MASK, ALL))
    chance = p.is_positive[:, 0].sigmoid()
    expected = {
        "verbalised": sum(abs(p.verbalised[i, 0] - y[i]) for i in range(B)) / B,
        "polarity": -(chance[0].log() + (1 - chance[2]).log()) / 2,
    }
    far = 0.0
    for i in range(B):
        weights = torch.stack([torch.exp(-abs(y[i] - v) / 3.0) for v in STEPS])
        far = far - sum(weights[k] / weights.sum() * p.near[i, k] for k in range(len(STEPS)))
    expected["prototypes"] = far / B
    for name, part in expected.items():
        assert_close(parts[name], part, rtol=0, atol=1e-14, msg=name)
    more = expected["verbalised"] + 0.05 * expected["polarity"] + 0.3 * expected["prototypes"]
    assert_close(total, plain + more, rtol=0, atol=1e-14)
    _, parts = combine(loss_terms(config, p, torch.zeros(B), MASK, ALL))
    assert parts["polarity"] == 0


def test_without_a_language_model_loss():
    total, parts = combine(loss_terms(ObjectiveConfig(), predictions(), torch.randn(B), MASK, ALL))
    assert list(parts) == ["task", "fusion", "av", "text"]
    assert total.dtype == torch.float64


@pytest.mark.parametrize("term", ["task", "fusion", "av", "text"])
def test_a_term_may_have_labels_of_its_own(term):
    p, y, other = predictions(), torch.randn(B).double(), torch.randn(B).double()
    _, parts = combine(loss_terms(ObjectiveConfig(), p, y, MASK, ALL, head_labels={term: other}))
    for name in ("task", "fusion", "av", "text"):
        target = (other if name == term else y).reshape([B] + [1] * (getattr(p, name).dim() - 1))
        assert_close(parts[name], (getattr(p, name) - target).abs().mean())


def test_several_outputs():
    p, y = predictions(2), torch.randn(B, 2)
    _, parts = combine(loss_terms(ObjectiveConfig(), p, y, MASK, ALL))
    assert_close(parts["fusion"], (p.fusion - y[:, None]).abs().mean())
    assert_close(parts["av"], (p.av - y).abs().mean())


def test_counts_are_told_from_the_inputs_alone():
    counts = term_counts(MASK, torch.tensor([True, False, True, False]), torch.tensor([0.5, 0.0, -1.0, 2.0]))
    assert {name: count.item() for name, count in counts.items()} == {
        "task": 4, "fusion": 4, "av": 2, "text": 4, "verbalised": 4, "polarity": 3, "prototypes": 4, "lm": 6
    }  # fmt: skip
    assert not any(count.is_floating_point() for count in counts.values())
    assert counts.keys() == {
        term.name
        for term in loss_terms(
            ObjectiveConfig(), predictions(auxiliary=True), torch.zeros(B), MASK, ALL, lambda: torch.zeros(())
        )
    }


def test_a_term_is_its_sum_over_a_count():
    terms = [
        LossTerm("a", torch.tensor(6.0), torch.tensor(3), 1.0),
        LossTerm("b", torch.tensor(0.0), torch.tensor(0), 0.5),
    ]
    total, parts = combine(terms)
    assert (total, parts) == (2.0, {"a": 2.0, "b": 0.0})
    # of a larger step, shared by two processes: 5 of each
    total, parts = combine(terms, {"a": torch.tensor(2.5), "b": torch.tensor(0.5), "c": torch.tensor(7.0)})
    assert (total, parts) == (torch.tensor(6.0) / 2.5, {"a": torch.tensor(6.0) / 2.5, "b": 0.0})
    assert LossTerm("a", torch.tensor(6.0), torch.tensor(3), 1.0).mean(torch.tensor(0)) == 6.0


def test_parts_of_a_batch_add_up_to_the_whole_batch():
    """In float64 to rounding, whatever the parts have of audio, vision and tokens to predict."""
    config = ObjectiveConfig(gamma=0.9, lambda_polarity=0.6, lambda_prototypes=0.2)
    y = torch.tensor([0.0, 1.3, 0.0, -0.4]).double()
    p, present = predictions(auxiliary=True), torch.tensor([False, True, True, False])
    surprise = torch.rand(B, 3).double()
    names = ("task", "fusion", "text", "av", "verbalised", "is_positive", "near")

    def terms(rows):
        part = Predictions(**{name: getattr(p, name)[rows] for name in names}, steps=STEPS)
        mask = MASK[rows]
        return loss_terms(config, part, y[rows], mask, present[rows], lambda: surprise[rows][predicts_next(mask)].sum())

    whole, parts = combine(terms(slice(None)))
    gradients = torch.autograd.grad(whole, [getattr(p, name) for name in names])
    counts = term_counts(MASK, present, y)
    for cut in ([[0], [1, 2, 3]], [[0, 3], [1], [2]], [[i] for i in range(B)]):
        found = [combine(terms(rows), counts) for rows in cut]
        total = sum(loss for loss, _ in found)
        assert_close(total, whole, rtol=0, atol=1e-14)
        for name, part in parts.items():
            assert_close(sum(losses[name] for _, losses in found), part, rtol=0, atol=1e-14)
        for one, other in zip(torch.autograd.grad(total, [getattr(p, n) for n in names]), gradients, strict=True):
            assert_close(one, other, rtol=0, atol=1e-15)


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
    assert predicts_next(mask).sum() == len(losses)
    expected = torch.stack(losses).sum() if losses else torch.zeros(()).double()
    found = next_token_sum(readout, states, ids, mask)
    assert found.dtype == torch.float64
    assert_close(found, expected, rtol=0, atol=1e-12)


def test_the_language_models_loss_is_fp32_beside_a_bf16_lm():
    readout = nn.Linear(5, 11, bias=False).bfloat16()
    ids, states, mask = torch.randint(0, 11, (2, 6)), torch.randn(2, 6, 5).bfloat16(), torch.ones(2, 6).long()
    found = next_token_sum(readout, states, ids, mask)
    expected = torch.nn.functional.cross_entropy(readout(states[:, :-1]).float().flatten(0, 1), ids[:, 1:].flatten())
    assert found.dtype == torch.float32
    assert_close(found / 10, expected)


def test_gradients_are_those_of_the_formula_without_keeping_logits():
    torch.manual_seed(0)
    readout = Readout()
    ids, states = torch.randint(0, 11, (3, 6)), torch.randn(3, 6, 5).double().requires_grad_()
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]])
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        loss = next_token_sum(readout, states, ids, mask)
    assert not any(shape[-1:] == (11,) for shape in kept)
    loss.backward()
    found, states.grad = states.grad, None
    torch.stack(by_hand(readout, states, ids, mask)).sum().backward()
    assert_close(found, states.grad, rtol=0, atol=1e-13)


@pytest.mark.parametrize("length", [1, 2, 40])
def test_ranks_with_other_batches_call_the_readout_equally_often(length):
    """Under ZeRO-3 each call gathers the output embeddings from all ranks: another number of them would hang."""
    readout = Readout()
    next_token_sum(readout, torch.randn(2, length, 5).double(), torch.ones(2, length).long(), torch.ones(2, length))
    assert readout.calls == objective.LOGIT_CHUNKS
