"""Metrics as functions of sums over utterances, so that a resample costs one matrix product and not an evaluation.

Every metric of a task is a function of a few sums: errors, products, right answers, how often a class is said, true, or
both. An utterance that a resample holds twice counts twice in each of them. Tests hold the result to
:func:`~deepmlf_llm.tasks.metrics.task_metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepmlf_llm.tasks.class_metrics import decided
from deepmlf_llm.tasks.classification import ClassificationTask
from deepmlf_llm.tasks.metrics import comparable
from deepmlf_llm.tasks.registry import Task, task_of
from deepmlf_llm.tasks.regression import RegressionTask

Sums = NDArray[np.float64]
Columns = dict[str, NDArray[Any]]
Formula = Callable[[Mapping[str, Sums]], dict[str, Sums]]
_VARIES = 1e-12  # share of a variance that rounding alone may leave where the values never vary


@dataclass(frozen=True)
class MetricSums:
    """What each utterance adds to the sums, and the metrics that are made of them.

    Attributes:
        values: [utterances x numbers].
        columns: name -> the places in ``values`` that hold it: one, or one a class.
        names: the metrics, in the order in which papers print them.
        formula: sums by name, [b] or [classes x b] -> metric [b] by name.
    """

    values: Sums
    columns: Mapping[str, slice]
    names: tuple[str, ...]
    formula: Formula

    @classmethod
    def of(cls, outputs: ArrayLike, labels: ArrayLike, dataset: str | Task) -> MetricSums:
        """The sums of one set of predictions.

        Args:
            outputs: predicted polarity [n], in the dtype in which the metrics compare it; of classes logits [n x c].
            labels: as the data hold them.
            dataset: name of a data set, or a task.

        Raises:
            ConfigError: unknown ``dataset``.
            DataError: as :func:`~deepmlf_llm.tasks.metrics.task_metrics`.
        """
        task = task_of(dataset)
        said, true = np.asarray(outputs), np.asarray(labels)
        if isinstance(task, ClassificationTask):
            columns, formula = _of_classes(said, true, task)
        else:
            columns, formula = _of_polarities(said, true, task)
        blocks = [np.asarray(values, np.float64).reshape(len(values), -1) for values in columns.values()]
        ends = np.cumsum([block.shape[1] for block in blocks]).tolist()
        places = {
            name: slice(end - block.shape[1], end) for name, block, end in zip(columns, blocks, ends, strict=True)
        }
        values = np.concatenate(blocks, axis=1)
        whole = formula(_by_name(values.sum(axis=0, keepdims=True), places))
        return cls(values, places, tuple(whole), formula)

    def __len__(self) -> int:
        return len(self.values)

    def metrics(self, counts: NDArray[Any]) -> Sums:
        """The metrics of resamples.

        Args:
            counts: how often each holds each utterance [b x n].

        Returns:
            [metrics x b], in the order of :attr:`names`; NaN where a resample leaves one undefined.
        """
        return np.stack(list(self.formula(_by_name(counts @ self.values, self.columns)).values()))


def _by_name(sums: Sums, places: Mapping[str, slice]) -> dict[str, Sums]:
    """[b x numbers] as name -> [b], or [classes x b]."""
    found = {name: sums.T[place] for name, place in places.items()}
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def _of_polarities(predictions: NDArray[Any], labels: NDArray[Any], task: RegressionTask) -> tuple[Columns, Formula]:
    """Of labels that are numbers."""
    y_hat, y = comparable(predictions, labels, task)
    x, z = y_hat.astype(np.float64), y.astype(np.float64)
    columns: Columns = {"one": np.ones(len(z)), "error": np.abs(x - z)}
    x, z = x - x.mean(), z - z.mean()  # sums of squares about the mean lose no digits
    columns |= {"x": x, "z": z, "xx": x * x, "zz": z * z, "xz": x * z}
    columns |= {name: rule(y_hat) == rule(y) for name, rule in task.classes.items()}
    for ending, signs in task.signs.items():
        counted, said, true = signs.counted(y), signs(y_hat), signs(y)
        pairs = np.stack([~said, said], axis=1), np.stack([~true, true], axis=1)
        columns |= _counts(ending, *(side & counted[:, None] for side in pairs))
    for name, rule in task.f1.items():
        of_said, of_true = rule(y_hat)[:, None], rule(y)[:, None]
        everyone = np.arange(2 + max(of_said.max(), of_true.max()))  # one that never comes: at least two
        columns |= _counts(name, of_said == everyone, of_true == everyone)

    def formula(s: Mapping[str, Sums]) -> dict[str, Sums]:
        n = s["one"]
        found = {"mae": s["error"] / n, "corr": _correlation(s), **{name: s[name] / n for name in task.classes}}
        with np.errstate(divide="ignore", invalid="ignore"):
            for ending in task.signs:
                found[f"acc2{ending}"] = s[f"both{ending}"].sum(axis=0) / s[f"true{ending}"].sum(axis=0)
                found[f"f1{ending}"] = _weighted_f1(s, ending)
            return found | {name: _weighted_f1(s, name) for name in task.f1}

    return columns, formula


def _of_classes(logits: NDArray[Any], labels: NDArray[Any], task: ClassificationTask) -> tuple[Columns, Formula]:
    """Of labels that are classes."""
    said, true = decided(logits, labels, task)
    columns: Columns = {"one": np.ones(len(true)), "right": (said == true).reshape(len(true), -1).all(axis=1)}
    everyone = np.arange(len(task.classes))
    sides = (said > 0, true > 0) if task.several else (said[:, None] == everyone, true[:, None] == everyone)
    columns |= _counts("", *sides)
    if task.several:
        columns["decisions"] = (said == true).mean(axis=1)

    def formula(s: Mapping[str, Sums]) -> dict[str, Sums]:
        found = {"acc": s["right"] / s["one"]}
        if task.several:
            found["acc_labels"] = s["decisions"] / s["one"]
        f1, there = _f1(s, ""), s["said"] + s["true"] > 0
        with np.errstate(divide="ignore", invalid="ignore"):
            found["f1_weighted"] = np.where(there.any(axis=0), np.nan_to_num(_weighted_f1(s, "")), np.nan)
            found["f1_macro"] = (f1 * there).sum(axis=0) / there.sum(axis=0)
        return found

    return columns, formula


def _counts(ending: str, said: NDArray[np.bool_], true: NDArray[np.bool_]) -> Columns:
    """Which class is said, is true, or both [n x classes]."""
    return {f"said{ending}": said, f"true{ending}": true, f"both{ending}": said & true}


def _f1(s: Mapping[str, Sums], ending: str) -> Sums:
    """F1 of each class [classes x b]; 0 for one that nobody says."""
    either = s[f"said{ending}"] + s[f"true{ending}"]
    return np.where(either > 0, 2 * s[f"both{ending}"] / np.maximum(either, 1), 0.0)


def _weighted_f1(s: Mapping[str, Sums], ending: str) -> Sums:
    """F1 weighted by the labels' share of each class [b]."""
    true = s[f"true{ending}"]
    weighted: Sums = (_f1(s, ending) * true).sum(axis=0) / true.sum(axis=0)
    return weighted


def _correlation(s: Mapping[str, Sums]) -> Sums:
    """Pearson's, from sums."""
    n = s["one"]
    varied = {a: s[a * 2] - s[a] ** 2 / n for a in "xz"}
    constant = (varied["x"] <= _VARIES * s["xx"]) | (varied["z"] <= _VARIES * s["zz"])
    with np.errstate(divide="ignore", invalid="ignore"):
        r = (s["xz"] - s["x"] * s["z"] / n) / np.sqrt(varied["x"] * varied["z"])
    return np.where(constant, np.nan, np.clip(r, -1.0, 1.0))
