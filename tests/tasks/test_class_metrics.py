"""Metrics of classes against counts written out, utterance by utterance."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deepmlf_llm.errors import DataError
from deepmlf_llm.tasks import class_table, task_metrics
from deepmlf_llm.tasks.class_metrics import probabilities
from deepmlf_llm.tasks.classification import balanced_weights, class_counts
from deepmlf_llm.tasks.registry import make_task

ONE = make_task("moods", {"classes": ["a", "b", "c", "d"]})
MANY = make_task("moods", {"classes": ["a", "b", "c"], "kind": "multi_label"})


def f1(found, true, k):
    hits = sum(p == t == k for p, t in zip(found, true, strict=True))
    total = found.count(k) + true.count(k)
    return 2 * hits / total if total else 0.0


def test_one_class_an_utterance():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(40, 4)), rng.integers(0, 3, 40)  # nothing is of class d
    logits[:, 3] -= 9  # and nothing is taken for it
    found, true = [max(range(4), key=row.__getitem__) for row in logits.tolist()], labels.tolist()
    metrics = task_metrics(logits.astype(np.float32), labels.astype(np.float32), ONE)
    each = {k: f1(found, true, k) for k in range(3)}
    assert list(metrics) == ["acc", "f1_weighted", "f1_macro"]
    assert metrics["acc"] == pytest.approx(sum(p == t for p, t in zip(found, true, strict=True)) / 40)
    assert metrics["f1_macro"] == pytest.approx(sum(each.values()) / 3)
    assert metrics["f1_weighted"] == pytest.approx(sum(each[k] * true.count(k) for k in each) / 40)
    result = class_table(logits, labels, ONE)
    assert result["table"]["b"]["f1"] == pytest.approx(each[1])
    assert result["table"]["d"] == {"precision": 0, "recall": 0, "f1": 0, "labels": 0}
    counted = [[sum(t == i and p == j for p, t in zip(found, true, strict=True)) for j in range(4)] for i in range(4)]
    assert result["confusion"] == counted


def test_several_classes_an_utterance():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(30, 3)), (rng.random((30, 3)) < 0.4).astype(np.float32)
    found, true = (logits > 0).astype(int).tolist(), labels.astype(int).tolist()
    metrics = task_metrics(logits, labels, MANY)
    assert metrics["acc"] == pytest.approx(sum(p == t for p, t in zip(found, true, strict=True)) / 30)
    right = sum(p[k] == t[k] for p, t in zip(found, true, strict=True) for k in range(3))
    assert metrics["acc_labels"] == pytest.approx(right / 90)
    each = [f1([p[k] for p in found], [t[k] for t in true], 1) for k in range(3)]
    support = [sum(t[k] for t in true) for k in range(3)]
    assert metrics["f1_macro"] == pytest.approx(sum(each) / 3)
    assert metrics["f1_weighted"] == pytest.approx(
        sum(f * s for f, s in zip(each, support, strict=True)) / sum(support)
    )
    result = class_table(logits, labels, MANY)
    assert result["table"]["c"]["labels"] == support[2]
    both = sum(p[2] and t[2] for p, t in zip(found, true, strict=True))
    assert result["confusion"]["c"][1] == [support[2] - both, both]


def test_nothing_there_and_nothing_found_is_undefined():
    with pytest.warns(UserWarning, match="NaN, because no utterance has a class"):
        metrics = task_metrics(-np.ones((2, 3)), np.zeros((2, 3)), MANY)
    assert metrics["acc"] == 1
    assert math.isnan(metrics["f1_macro"])


@pytest.mark.parametrize(
    ("task", "logits", "labels", "told"),
    [
        (ONE, np.zeros((2, 3)), np.zeros(2), r"expected \[n x 4\] and \[n\]"),
        (ONE, np.zeros((2, 4)), np.array([0, 4.0]), "4 in row 1: expected the index of a class, 0 to 3"),
        (ONE, np.zeros((2, 4)), np.array([0, 1.5]), "1.5 in row 1"),
        (ONE, np.full((1, 4), np.nan), np.zeros(1), "not finite"),
        (ONE, np.zeros((0, 4)), np.zeros(0), "empty"),
        (MANY, np.zeros((1, 3)), np.array([[0, 2.0, 1]]), "2 in row 0: expected 0 or 1 for each class"),
    ],
)
def test_what_is_no_class_is_refused(task, logits, labels, told):
    with pytest.raises(DataError, match=told):
        task_metrics(logits, labels, task)


def test_probabilities_at_any_size_of_logits():
    assert probabilities(np.array([[1e4, 1e4, -1e4, -1e4]]), ONE).tolist() == [[0.5, 0.5, 0, 0]]
    assert probabilities(np.array([0.0, 1e4, -1e4]), MANY).tolist() == [0.5, 1, 0]
    assert probabilities(np.array([math.log(3), 0, -1e4, -1e4]), ONE)[:2] == pytest.approx([0.75, 0.25])


def test_balanced_weights_make_classes_count_alike():
    labels = np.array([0, 0, 0, 1, 1, 2.0])
    counts = class_counts(labels, ONE)
    assert counts == [3, 2, 1, 0]
    weights = balanced_weights(counts, 6, several=False)
    assert [w * n for w, n in zip(weights[:3], counts, strict=False)] == pytest.approx([1.5] * 3)
    assert weights[3] == 1
    many = np.array([[1, 0, 1], [1, 0, 0], [0, 0, 0]])
    assert class_counts(many, MANY) == [2, 0, 1]
    assert balanced_weights([2, 0, 1], 3, several=True) == pytest.approx((0.5, 1, 2))
