"""Metrics as functions of sums over utterances, so that a resample costs one matrix product and not an evaluation.

Every metric of a data set is a function of a few sums: errors, products, right answers, a table of two classes. An
utterance that a resample holds twice counts twice in each of them. Tests hold the result to
:func:`~deepmlf_llm.tasks.metrics.polarity_metrics`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepmlf_llm.tasks.metrics import comparable, regression_of
from deepmlf_llm.tasks.registry import Task

Sums = NDArray[np.float64]
_VARIES = 1e-12  # share of a variance that rounding alone may leave where the values never vary


@dataclass(frozen=True)
class MetricSums:
    """What each utterance adds to the sums.

    Attributes:
        values: [utterances x columns].
        columns: name of each column.
        classes: names of the metrics that are a share of equal classes.
        signs: endings of the metrics of two classes.
    """

    values: Sums
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    signs: tuple[str, ...]

    @classmethod
    def of(cls, predictions: ArrayLike, labels: ArrayLike, dataset: str | Task) -> MetricSums:
        """The sums of one set of predictions.

        Args:
            predictions, labels: polarity [n], in the dtype in which the metrics compare them.
            dataset: name of a data set, or a task, whose labels are numbers.

        Raises:
            ConfigError: unknown ``dataset``, or one of classes.
            DataError: as :func:`~deepmlf_llm.tasks.metrics.polarity_metrics`.
        """
        task = regression_of(dataset)
        y_hat, y = comparable(predictions, labels, dataset)
        x, z = y_hat.astype(np.float64), y.astype(np.float64)
        columns = {"one": np.ones(len(z)), "error": np.abs(x - z)}
        x, z = x - x.mean(), z - z.mean()  # sums of squares about the mean lose no digits
        columns |= {"x": x, "z": z, "xx": x * x, "zz": z * z, "xz": x * z}
        columns |= {name: classes(y_hat) == classes(y) for name, classes in task.classes.items()}
        for ending, signs in task.signs.items():
            counted, said, true = signs.counted(y), signs(y_hat), signs(y)
            columns |= {
                f"tp{ending}": counted & said & true,
                f"fp{ending}": counted & said & ~true,
                f"fn{ending}": counted & ~said & true,
                f"tn{ending}": counted & ~said & ~true,
            }
        values = np.stack([column.astype(np.float64) for column in columns.values()], axis=1)
        return cls(values, tuple(columns), tuple(task.classes), tuple(task.signs))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics, in the order in which papers print them."""
        two = (name for ending in self.signs for name in (f"acc2{ending}", f"f1{ending}"))
        return ("mae", "corr", *self.classes, *two)

    def metrics(self, counts: NDArray[Any]) -> NDArray[np.float64]:
        """The metrics of resamples.

        Args:
            counts: how often each holds each utterance [b x n].

        Returns:
            [metrics x b], in the order of :attr:`names`; NaN where a resample leaves one undefined.
        """
        s = dict(zip(self.columns, (counts @ self.values).T, strict=True))
        n = s["one"]
        with np.errstate(divide="ignore", invalid="ignore"):
            found = [s["error"] / n, _correlation(s, n), *(s[name] / n for name in self.classes)]
            for ending in self.signs:
                found += _two_classes(*(s[f"{cell}{ending}"] for cell in ("tp", "fp", "fn", "tn")))
        return np.stack(found)


def _correlation(s: dict[str, Sums], n: Sums) -> Sums:
    """Pearson's, from sums."""
    varied = {a: s[a * 2] - s[a] ** 2 / n for a in "xz"}
    constant = (varied["x"] <= _VARIES * s["xx"]) | (varied["z"] <= _VARIES * s["zz"])
    r = (s["xz"] - s["x"] * s["z"] / n) / np.sqrt(varied["x"] * varied["z"])
    return np.where(constant, np.nan, np.clip(r, -1.0, 1.0))


def _two_classes(tp: Sums, fp: Sums, fn: Sums, tn: Sums) -> list[Sums]:
    """Accuracy, and F1 of both classes weighted by the labels' share of each."""
    total = tp + fp + fn + tn
    positive = np.where(tp > 0, 2 * tp / (2 * tp + fp + fn), 0.0)
    negative = np.where(tn > 0, 2 * tn / (2 * tn + fp + fn), 0.0)
    return [(tp + tn) / total, (positive * (tp + fn) + negative * (tn + fp)) / total]
