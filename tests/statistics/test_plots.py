"""Mirrors ``deepmlf_llm/statistics/plots.py``."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from deepmlf_llm.statistics.plots import calibration_groups, class_names, confusion_counts, write_plots
from deepmlf_llm.statistics.predictions import Predictions
from deepmlf_llm.tasks.registry import TASKS


def test_confusion_is_sklearns_and_has_the_classes_of_the_finest_accuracy(made):
    predictions = made(error=1.0)
    counts, names = confusion_counts(predictions)
    classes = [np.round(np.clip(values, -3, 3)) for values in (predictions.labels, predictions.head())]
    assert (counts == confusion_matrix(*classes, labels=range(-3, 4))).all()
    assert names == ["-3", "-2", "-1", "0", "+1", "+2", "+3"]
    bins = class_names(TASKS["sims"].classes["acc5"])
    assert bins == ["to -0.7", "-0.7 to -0.1", "-0.1 to 0.1", "0.1 to 0.7", "above 0.7"]


def test_classes_have_their_confusion_and_the_calibration_of_their_probabilities(tmp_path):
    random = np.random.default_rng(0)
    rules = {"kind": "single_label", "classes": ["calm", "tense", "glad"]}
    logits = random.normal(size=(400, 3)).astype(np.float32) * 2
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([random.choice(3, p=row / row.sum()) for row in chances.astype(np.float64)], np.float32)
    found = Predictions("moods", "test", list(map(str, range(400))), labels, {"polarity": logits}, rules)
    counts, names = confusion_counts(found)
    assert names == ["calm", "tense", "glad"]
    assert (counts == confusion_matrix(labels, logits.argmax(axis=1))).all()
    for chance, right in calibration_groups(found):  # drawn from the very probabilities
        assert abs(right.mean - chance) < 1.5 * right.half + 0.02
    assert write_plots(tmp_path, found) is None
    assert {path.name for path in tmp_path.iterdir()} == {"confusion.svg", "calibration.svg"}
    truth = np.eye(3, dtype=np.float32)[labels.astype(int)]
    several = replace(found, labels=truth, task={**rules, "kind": "multi_label"})
    assert confusion_counts(several) is None
    assert sum(mean.n for _, mean in calibration_groups(several)) == 1200


def test_calibration_shows_a_scale_that_is_too_narrow(made):
    predictions = made(error=0.0)
    right = calibration_groups(predictions)
    assert [mean.mean for _, mean in right] == pytest.approx([x for x, _ in right], abs=1e-6)
    half = replace(predictions, heads={"polarity": predictions.labels / 2})
    assert [mean.mean for _, mean in calibration_groups(half)] == pytest.approx(
        [2 * x for x, _ in calibration_groups(half)], abs=1e-6
    )
    assert sum(mean.n for _, mean in right) == len(predictions.labels)
    assert len(calibration_groups(made(n=3))) == 1


def test_both_are_drawn_the_same_for_the_same_numbers(made, tmp_path):
    assert write_plots(tmp_path, made(), "a.") is None
    assert write_plots(tmp_path, made(), "b.") is None
    for kind in ("confusion", "calibration"):
        first = (tmp_path / f"a.{kind}.svg").read_bytes()
        assert first.startswith(b"<?xml")
        assert first == (tmp_path / f"b.{kind}.svg").read_bytes()


def test_without_matplotlib_there_is_a_sentence(made, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = write_plots(tmp_path, made())
    assert said is not None
    assert "matplotlib: pip install" in said
    assert not list(tmp_path.iterdir())
