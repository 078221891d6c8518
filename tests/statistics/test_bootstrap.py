"""Mirrors ``deepmlf_llm/statistics/bootstrap.py`` and ``sums.py``."""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
import pytest
from scipy import stats

from deepmlf_llm.errors import DataError
from deepmlf_llm.statistics.bootstrap import draw, interval, metric_intervals, p_value, resampled
from deepmlf_llm.statistics.sums import MetricSums
from deepmlf_llm.tasks.metrics import polarity_metrics, task_metrics
from deepmlf_llm.tasks.registry import make_task


def polarities(n: int, seed: int, scale: float = 3.0, error: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and labels on the labels' own grid, zeros included."""
    random = np.random.default_rng(seed)
    labels = (np.round(random.uniform(-scale, scale, n) / scale * 15) / 15 * scale).astype(np.float32)
    return (labels + random.normal(size=n) * error * scale / 3).astype(np.float32), labels


@pytest.mark.parametrize(("dataset", "scale"), [("mosi", 3.0), ("mosei", 3.0), ("sims", 1.0)])
def test_sums_give_the_metrics_of_any_resample(dataset: str, scale: float) -> None:
    predictions, labels = polarities(60, 1, scale)
    sums = MetricSums.of(predictions, labels, dataset)
    random = np.random.default_rng(2)
    rows = [np.arange(60), *(random.integers(0, 60, 60) for _ in range(12)), np.repeat(3, 60)]
    found = sums.metrics(np.stack([np.bincount(row, minlength=60) for row in rows]))
    for row, values in zip(rows, found.T, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = polarity_metrics(predictions[row], labels[row], dataset)
        assert tuple(expected) == sums.names
        assert values == pytest.approx(list(expected.values()), abs=1e-9, nan_ok=True)


OWN = make_task("valence", {"range": [0, 10], "bins": [4, 6], "names": ["low", "middle", "high"]})
MOODS = make_task("moods", {"classes": ["a", "b", "c", "d"]})
SEVERAL = make_task("moods", {"classes": ["a", "b", "c"], "kind": "multi_label"})


@pytest.mark.parametrize("task", [OWN, MOODS, SEVERAL], ids=["own scale", "classes", "several labels"])
def test_sums_give_the_metrics_of_other_tasks(task: Any) -> None:
    random = np.random.default_rng(5)
    labels: Any = random.integers(0, 3, 50)  # of MOODS; nothing is of the last class
    if task is OWN:
        labels = random.uniform(0, 10, 50)
    elif task is SEVERAL:
        labels = (random.random((50, 3)) < 0.3).astype(np.float32)
    outputs = labels + random.normal(size=50) * 2 if task is OWN else random.normal(size=(50, len(task.classes)))
    outputs, labels = outputs.astype(np.float32), labels.astype(np.float32)
    rows = [np.arange(50), *(random.integers(0, 50, 50) for _ in range(8)), np.repeat(4, 50)]
    sums = MetricSums.of(outputs, labels, task)
    found = sums.metrics(np.stack([np.bincount(row, minlength=50) for row in rows]))
    for row, values in zip(rows, found.T, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = task_metrics(outputs[row], labels[row], task)
        assert tuple(expected) == sums.names
        assert values == pytest.approx(list(expected.values()), abs=1e-6, nan_ok=True)
    intervals = metric_intervals(outputs, labels, task, 200)
    assert tuple(intervals) == sums.names
    assert all(low < value < high for (low, high), value in zip(intervals.values(), found[:, 0], strict=True))


def test_what_is_undefined_has_no_interval() -> None:
    found = metric_intervals(np.ones(8, np.float32), np.zeros(8, np.float32), "mosi", 200)
    assert found["mae"] == [1.0, 1.0]
    assert found["corr"] is None
    assert found["acc2_non0"] is None
    assert metric_intervals([1.0], [1.0], "mosi", 50)["corr"] is None
    with pytest.raises(DataError, match="not finite"):
        metric_intervals([float("nan")], [1.0], "mosi")


def test_intervals_are_scipys() -> None:
    predictions, labels = polarities(120, 3)

    def correlation(x, y, axis):
        x, y = x - x.mean(axis, keepdims=True), y - y.mean(axis, keepdims=True)
        return (x * y).sum(axis) / np.sqrt((x * x).sum(axis) * (y * y).sum(axis))

    options = {"paired": True, "vectorized": True, "n_resamples": 20_000, "method": "percentile"}
    pair = (predictions.astype(np.float64), labels.astype(np.float64))
    theirs = stats.bootstrap(pair, correlation, random_state=np.random.default_rng(0), **options).confidence_interval
    errors = (np.abs(pair[0] - pair[1]),)
    error = stats.bootstrap(
        errors, np.mean, random_state=np.random.default_rng(0), n_resamples=20_000, method="percentile"
    )
    ours = metric_intervals(predictions, labels, "mosi", 20_000)
    assert ours["corr"] == pytest.approx([theirs.low, theirs.high], abs=2e-3)
    assert ours["mae"] == pytest.approx(error.confidence_interval, abs=4e-3)
    assert ours == metric_intervals(predictions, labels, "mosi", 20_000)
    assert ours != metric_intervals(predictions, labels, "mosi", 20_000, seed=1)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    inside = 0
    for seed in range(100):
        errors = np.random.default_rng(seed).exponential(size=80)
        low, high = metric_intervals(errors, np.zeros(80), "mosi", 400)["mae"]
        inside += low <= 1.0 <= high
    assert 87 <= inside <= 99


def test_a_test_split_of_mosi_takes_less_than_seconds() -> None:
    predictions, labels = polarities(686, 4)
    began = time.process_time()
    assert len(metric_intervals(predictions, labels, "mosi")) == 9
    assert time.process_time() - began < 3


def test_counts_are_draws_with_replacement() -> None:
    counts = np.concatenate(list(resampled(7, 1200, np.random.default_rng(0))))
    assert counts.shape == (1200, 7)
    assert (counts.sum(axis=1) == 7).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(7), abs=0.1)
    assert counts.var(axis=0) == pytest.approx(np.full(7, 6 / 7), abs=0.15)


def test_p_values_and_intervals_say_the_same() -> None:
    drawn = np.random.default_rng(0).normal(size=4000)
    for shift in (0.0, 1.0, 1.9, 2.1, 3.0, -2.1):
        low, high = interval(drawn + shift)
        assert (p_value(drawn + shift) < 0.05) == (low > 0 or high < 0)
    assert p_value(drawn) == pytest.approx(1, abs=0.1)
    assert p_value(drawn + 1.5) == pytest.approx(2 * stats.norm.sf(1.5), abs=0.02)
    assert p_value(np.full(99, 1.0)) == 2 / 100
    assert p_value(np.zeros(99)) == 1.0
    assert p_value(np.full(99, np.nan)) is None


def runs(seeds: int, bias: float, spread: float, n: int = 200) -> list[MetricSums]:
    """Runs whose error is ``bias`` plus what their seed adds."""
    labels = np.zeros(n)
    noise = np.random.default_rng(9).exponential(0.1, size=n)
    return [MetricSums.of(noise + bias + spread * seed, labels, "mosi") for seed in range(seeds)]


def test_seeds_are_drawn_too_and_paired_where_they_are_the_same() -> None:
    one = draw([runs(1, 0.5, 0.0)], False, 2000)[0]
    several = draw([runs(5, 0.5, 0.2)], False, 2000)[0]
    assert one.measured.shape[1], several.measured.shape[1] == (1, 5)
    assert several.measured[0].tolist() == pytest.approx((one.measured[0] + 0.2 * np.arange(5)).tolist())
    by_utterances = np.full(200, 0.1).std() + 0.1 / np.sqrt(200)
    by_seeds = 0.2 * np.sqrt(2 / 5)  # the deviation of a mean of 5 draws from 0, .2, .., .8
    assert one.resampled[0].std() == pytest.approx(by_utterances, rel=0.3)
    assert several.resampled[0].std() == pytest.approx(by_seeds, rel=0.1)
    a, b = runs(5, 0.5, 0.2), runs(5, 0.6, 0.2)
    apart, paired = (draw([a, b], paired, 2000) for paired in (False, True))
    changes = [(x[1].resampled[0] - x[0].resampled[0]).std() for x in (apart, paired)]
    assert changes[0] == pytest.approx(by_seeds * np.sqrt(2), rel=0.1)
    assert changes[1] == pytest.approx(0, abs=1e-9)
