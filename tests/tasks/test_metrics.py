"""Mirrors ``metrics.py``: each metric against a formula written sample by sample, without SciPy or scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepmlf_llm.errors import ConfigError, DataError
from deepmlf_llm.tasks.class_metrics import CLASS_METRICS
from deepmlf_llm.tasks.metrics import (
    METRIC_DEFINITIONS,
    higher_is_better,
    metric_names,
    polarity_label,
    polarity_metrics,
)
from deepmlf_llm.tasks.registry import TASKS, make_task, task_of

MOSI_KEYS = ["mae", "corr", "acc7", "acc5", "acc3", "acc2_has0", "f1_has0", "acc2_non0", "f1_non0"]
SIMS_KEYS = ["mae", "corr", "acc5", "acc3", "acc2", "f1"]

# Values that tie and lie on edges and on halves, among arbitrary ones.
EDGES = [0.0, -0.0, 0.1, -0.1, 0.5, -0.5, 0.7, -0.7, 1.0, -1.0, 1.5, -1.5, 2.5, -2.5, 3.0, -3.0, 4.0, -4.0]
VALUES = st.one_of(st.sampled_from(EDGES), st.floats(-5, 5, width=32))
PAIRS = st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=40)


def test_names_and_their_order():
    assert list(polarity_metrics([0.3, -1.0], [1.0, -2.0], "mosi")) == MOSI_KEYS
    assert list(polarity_metrics([0.3, -1.0], [1.0, -2.0], "mosei")) == MOSI_KEYS
    assert list(polarity_metrics([0.3, -1.0], [1.0, -0.2], "sims")) == SIMS_KEYS
    assert list(polarity_metrics([0.3, -1.0], [1.0, -0.2], "simsv2")) == SIMS_KEYS
    assert set(METRIC_DEFINITIONS) == {*MOSI_KEYS, *SIMS_KEYS, "acc_bins", "f1_bins", *CLASS_METRICS}
    for dataset in TASKS:
        assert set(metric_names(dataset)) <= set(METRIC_DEFINITIONS)
        best = task_of(dataset).best_metric
        assert best in metric_names(dataset)
        assert higher_is_better(best) == (best != "mae")


@given(PAIRS)
@pytest.mark.filterwarnings("ignore:.*NaN, because")
def test_mosi_equals_the_formulas(pairs):
    y_hat, y = zip(*pairs, strict=True)
    metrics = polarity_metrics(y_hat, y, "mosi")
    assert metrics["mae"] == pytest.approx(sum(abs(p - t) for p, t in pairs) / len(pairs))
    assert_corr(metrics["corr"], y_hat, y)
    for classes in (7, 5, 3):
        limit = classes // 2
        predicted, true = ([round_half_to_even(clip(v, limit)) for v in side] for side in (y_hat, y))
        assert metrics[f"acc{classes}"] == pytest.approx(accuracy(predicted, true))
    predicted, true = ([v >= 0 for v in side] for side in (y_hat, y))
    assert metrics["acc2_has0"] == pytest.approx(accuracy(predicted, true))
    assert metrics["f1_has0"] == pytest.approx(weighted_f1(predicted, true))
    non0 = [(p > 0, t > 0) for p, t in pairs if t != 0]
    if non0:
        assert metrics["acc2_non0"] == pytest.approx(accuracy(*zip(*non0, strict=True)))
        assert metrics["f1_non0"] == pytest.approx(weighted_f1(*zip(*non0, strict=True)))
    else:
        assert math.isnan(metrics["acc2_non0"])
        assert math.isnan(metrics["f1_non0"])


@given(PAIRS, st.sampled_from([np.float32, np.float64]), st.sampled_from([np.float32, np.float64]))
@pytest.mark.filterwarnings("ignore:.*NaN, because")
def test_sims_equals_the_formulas(pairs, predictions_dtype, labels_dtype):
    y_hat, y = zip(*pairs, strict=True)
    metrics = polarity_metrics(np.array(y_hat, predictions_dtype), np.array(y, labels_dtype), "sims")
    clipped_hat, clipped = ([clip(v, 1) for v in side] for side in (y_hat, y))
    errors = [abs(p - t) for p, t in zip(clipped_hat, clipped, strict=True)]
    assert metrics["mae"] == pytest.approx(sum(errors) / len(errors), abs=1e-6)
    assert_corr(metrics["corr"], clipped_hat, clipped, tolerance=1e-3)
    predicted, true = ([v > 0 for v in side] for side in (clipped_hat, clipped))
    assert metrics["acc2"] == pytest.approx(accuracy(predicted, true))
    assert metrics["f1"] == pytest.approx(weighted_f1(predicted, true))
    for classes, edges in ((3, [-1.01, -0.1, 0.1, 1.01]), (5, [-1.01, -0.7, -0.1, 0.1, 0.7, 1.01])):
        # Edges in the dtype of the predictions, and never in a wider one than the labels came in.
        narrower = np.float32 if np.float32 in (predictions_dtype, labels_dtype) else np.float64
        sides = (np.array(clipped_hat, predictions_dtype), np.array(clipped, narrower))
        predicted, true = ([bin_by_comparing(v, edges) for v in side] for side in sides)
        assert metrics[f"acc{classes}"] == pytest.approx(accuracy(predicted, true))


def test_halves_round_to_the_even_neighbour():
    halves = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]
    even = [-2.0, -2.0, 0.0, 0.0, 2.0, 2.0]
    assert polarity_metrics(halves, even, "mosi")["acc7"] == 1
    assert polarity_metrics(halves, [-3.0, -1.0, -1.0, 1.0, 1.0, 3.0], "mosi")["acc7"] == 0


@pytest.mark.parametrize("edge", [-0.7, -0.1, 0.1, 0.7])
@pytest.mark.parametrize("predictions_dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("labels_dtype", [np.float16, np.float32, np.float64])
def test_sims_edge_belongs_to_the_bin_below_in_any_dtype(edge, predictions_dtype, labels_dtype):
    below, above = edge - 0.05, edge + 0.05
    predictions = np.array([edge, edge, below, above], predictions_dtype)
    labels = np.array([below, above, edge, edge], labels_dtype)
    assert polarity_metrics(predictions, labels, "sims")["acc5"] == 0.5


def test_widening_a_prediction_would_move_it_a_bin_up():
    """Why callers pass predictions as they are: in float64, float32(-0.7) lies above the edge."""
    on_edge = np.array([-0.7, 0.5], np.float32)
    labels = np.array([-0.9, 0.5])
    assert polarity_metrics(on_edge, labels, "sims")["acc5"] == 1
    assert polarity_metrics(on_edge.astype(np.float64), labels, "sims")["acc5"] == 0.5


def test_sims_clips_before_everything():
    metrics = polarity_metrics([5.0, -5.0, 0.4], [2.0, -1.0, 0.4], "sims")
    assert metrics["mae"] == 0
    assert metrics["corr"] == pytest.approx(1)


def test_all_zero_labels_give_nan_and_one_sentence_each():
    with pytest.warns(UserWarning, match="NaN, because") as caught:
        metrics = polarity_metrics([0.2, -1.0, 3.0], [0.0, 0.0, 0.0], "mosi")
    assert [str(w.message) for w in caught] == [
        "corr: NaN, because labels never vary",
        "acc2_non0 and f1_non0: NaN, because every label is 0",
    ]
    undefined = {name for name, value in metrics.items() if math.isnan(value)}
    assert undefined == {"corr", "acc2_non0", "f1_non0"}
    assert metrics["acc2_has0"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("dataset", ["mosi", "sims"])
@pytest.mark.parametrize(
    ("predictions", "labels", "why"),
    [
        ([0.1, 0.1, 0.1], [1.0, -0.5, 0.2], "predictions never vary"),
        ([0.3], [0.2], "predictions and labels never vary"),
        ([0.0, 1e-320], [0.5, -0.5], None),
    ],
)
def test_corr_without_variance_is_nan_with_the_reason(dataset, predictions, labels, why, recwarn):
    metrics = polarity_metrics(predictions, labels, dataset)
    messages = [str(w.message) for w in recwarn]
    if why is None:  # numbers that hardly vary: a correlation or an explained NaN, never a crash
        assert math.isnan(metrics["corr"]) == bool(messages)
    else:
        assert math.isnan(metrics["corr"])
        assert messages == [f"corr: NaN, because {why}"]


def test_sims_predictions_beyond_the_scale_are_constant_after_clipping():
    with pytest.warns(UserWarning, match="corr: NaN, because predictions never vary"):
        assert math.isnan(polarity_metrics([2.0, 3.0, 4.0], [0.1, 0.5, 1.0], "sims")["corr"])


def test_well_behaved_input_warns_of_nothing(recwarn):
    polarity_metrics([0.5, -1.0, 2.0], [1.0, -2.0, 0.0], "mosi")
    polarity_metrics([0.5, 0.9, 0.2], [-1.0, -0.2, -0.3], "sims")  # no class in common: F1 is 0
    assert not recwarn.list


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_takes_tensors_that_carry_gradients(dtype):
    predictions = torch.tensor([0.5, -1.0, 2.0], dtype=dtype, requires_grad=True)
    expected = polarity_metrics([0.5, -1.0, 2.0], [1.0, -2.0, 0.0], "mosi")
    assert polarity_metrics(predictions, torch.tensor([1.0, -2.0, 0.0]), "mosi") == expected
    assert all(type(value) is float for value in expected.values())


def test_labels_that_were_widened_on_the_way_stay_in_their_bin():
    labels = np.array([0.1, -0.7], np.float32)
    predictions = np.array([0.05, -0.9], np.float32)
    assert polarity_metrics(predictions, labels.astype(np.float64), "sims")["acc5"] == 1


def test_takes_whole_numbers():
    assert polarity_metrics([1, -2, 0], [1, -2, 0], "mosi")["acc7"] == 1


def test_inputs_are_left_alone():
    predictions, labels = np.array([2.0, -3.0, 0.1], np.float32), np.array([1.5, -2.0, 0.0])
    polarity_metrics(predictions, labels, "sims")
    assert predictions.tolist() == [2.0, -3.0, np.float32(0.1)]
    assert labels.tolist() == [1.5, -2.0, 0.0]


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([0.1, math.nan], [1.0, 0.0], "predictions: 1 of 2 values are not finite, the first at index 1"),
        ([0.1, 0.2], [math.nan, 0.0], "labels: 1 of 2 values are not finite, the first at index 0"),
        ([math.inf, 0.2], [1.0, 0.0], "predictions: 1 of 2 values"),
        ([0.1, 0.2], [1.0], r"shape \(2,\) against labels of shape \(1,\)"),
        ([[0.1], [0.2]], [1.0, 0.0], r"predictions of shape \(2, 1\): expected one value per sample"),
        (0.1, 0.2, r"predictions of shape \(\)"),
        ([], [], "empty"),
        (["good", "bad"], [1.0, 0.0], "predictions: expected real numbers"),
        ([0.1, None], [1.0, 0.0], "predictions: "),
    ],
)
def test_refuses_what_has_no_metrics(predictions, labels, message):
    with pytest.raises(DataError, match=message):
        polarity_metrics(predictions, labels, "mosi")


def test_unknown_data_set_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"dataset='mosie': expected one of mosi, mosei, sims, .* \(did you mean"):
        polarity_metrics([0.1], [0.2], "mosie")
    with pytest.raises(ConfigError, match="dataset='sarcasm': its labels are one of the classes literal, sarcastic"):
        polarity_metrics([0.1], [0.2], "sarcasm")
    with pytest.raises(ConfigError, match="dataset='SST'"):
        polarity_label(0.1, "SST")


@pytest.mark.parametrize(
    ("dataset", "polarity", "label"),
    [
        ("mosi", -3.0, "negative"),
        ("mosi", -0.51, "negative"),
        ("mosi", -0.5, "neutral"),
        ("mosei", 0.0, "neutral"),
        ("mosei", 0.5, "neutral"),
        ("mosei", 0.51, "positive"),
        ("sims", -0.1, "negative"),
        ("sims", np.float32(-0.1), "negative"),
        ("sims", -0.09, "neutral"),
        ("sims", np.float32(0.1), "neutral"),
        ("sims", 0.11, "positive"),
        ("sims", torch.tensor(0.9), "positive"),
        ("sims", 7, "positive"),
    ],
)
def test_label_is_the_class_of_acc3(dataset, polarity, label):
    assert polarity_label(polarity, dataset) == label


@given(VALUES, VALUES, st.sampled_from(["mosi", "sims"]))
@pytest.mark.filterwarnings("ignore:.*NaN, because")
def test_equal_labels_are_what_acc3_counts(a, b, dataset):
    same = polarity_label(a, dataset) == polarity_label(b, dataset)
    assert polarity_metrics([a], [b], dataset)["acc3"] == same


def test_a_task_of_ones_own_has_its_own_bins_and_names():
    task = make_task("mood", {"range": [0, 10], "bins": [4, 6], "names": ["low", "middle", "high"]})
    y_hat, y = np.array([3.0, 4.0, 5.0, 9.0]), np.array([1.0, 5.0, 6.0, 5.0])
    metrics = polarity_metrics(y_hat, y, task)
    assert list(metrics) == ["mae", "corr", "acc_bins", "f1_bins"] == metric_names(task)
    names = [["low", "low", "middle", "high"], ["low", "middle", "middle", "middle"]]
    assert metrics["mae"] == pytest.approx(2.0)
    assert metrics["acc_bins"] == 0.5
    assert metrics["f1_bins"] == pytest.approx(weighted_f1(*names))
    assert [polarity_label(value, task) for value in y_hat] == names[0]
    bare = make_task("mood", {"range": [0, 10]})
    assert metric_names(bare) == ["mae", "corr"]
    assert polarity_label(3.0, bare) is None


def test_label_of_no_number_is_refused():
    with pytest.raises(DataError, match="not finite"):
        polarity_label(math.nan, "mosi")
    with pytest.raises(DataError, match="expected one number"):
        polarity_label(np.array([0.1, 0.2]), "mosi")


def clip(value: float, limit: float) -> float:
    return max(-limit, min(limit, value))


def round_half_to_even(value: float) -> int:
    return round(Fraction(value))


def bin_by_comparing(value: np.floating, edges: Sequence[float]) -> int:
    edges = [value.dtype.type(edge) for edge in edges]
    (index,) = [i for i in range(len(edges) - 1) if value > edges[i] and value <= edges[i + 1]]
    return index


def accuracy(predicted: Sequence, true: Sequence) -> float:
    return sum(p == t for p, t in zip(predicted, true, strict=True)) / len(true)


def weighted_f1(predicted: Sequence, true: Sequence) -> float:
    total = 0.0
    for present in set(true):
        hits = sum(p == t == present for p, t in zip(predicted, true, strict=True))
        support = sum(t == present for t in true)
        guesses = sum(p == present for p in predicted)
        total += support * 2 * hits / (support + guesses)
    return total / len(true)


def assert_corr(actual: float, y_hat: Sequence[float], y: Sequence[float], tolerance: float = 1e-6) -> None:
    """Against exact sums; where one side hardly varies, rounding decides and any explained value will do."""
    n = len(y)
    a, b = [Fraction(v) for v in y_hat], [Fraction(v) for v in y]
    covariance = n * sum(p * t for p, t in zip(a, b, strict=True)) - sum(a) * sum(b)
    spread = [n * sum(v * v for v in side) - sum(side) ** 2 for side in (a, b)]
    if min(spread) == 0:
        assert math.isnan(actual)
    elif min(spread) > Fraction(1, 10**6):
        assert actual == pytest.approx(float(covariance) / math.sqrt(spread[0] * spread[1]), abs=tolerance)
