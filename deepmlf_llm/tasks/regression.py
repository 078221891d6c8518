"""What the labels of each data set mean: every rule in which CMU-MOSI, CMU-MOSEI and CH-SIMS differ, in one table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmlf_llm.errors import ConfigError, suggest

Floats = NDArray[np.floating[Any]]
TEXT_CASES = ("lower", "sentence", "keep")


@dataclass(frozen=True)
class Rounded:
    """Classes ``-limit .. limit`` as 0 .. 2 limit: clipped, then rounded, halves to the even neighbour."""

    limit: int

    def __call__(self, y: Floats) -> NDArray[np.int64]:
        return np.round(np.clip(y, -self.limit, self.limit)).astype(np.int64) + self.limit


@dataclass(frozen=True)
class Bins:
    """Classes 0 .. n between n - 1 inner edges, each bin open below and closed above.

    The edges are compared in the dtype of ``y``: float32(-0.7) counts as <= -0.7, and a copy in float64 does not.
    """

    edges: tuple[float, ...]

    def __call__(self, y: Floats) -> NDArray[np.int64]:
        return np.searchsorted(np.asarray(self.edges, dtype=y.dtype), y, side="left").astype(np.int64)


@dataclass(frozen=True)
class Signs:
    """Two classes: positive against the rest.

    Attributes:
        zero: class of 0: "positive", "negative", or "none": utterances whose label is 0 are left out, and a predicted
            0 is negative.
    """

    zero: str

    def counted(self, labels: Floats) -> NDArray[np.bool_]:
        """Which utterances are looked at [n]."""
        return labels != 0 if self.zero == "none" else np.ones(labels.shape, dtype=bool)

    def __call__(self, y: Floats) -> NDArray[np.bool_]:
        return y >= 0 if self.zero == "positive" else y > 0


@dataclass(frozen=True)
class RegressionTask:
    """The rules of one data set.

    Attributes:
        title: how papers call the data set.
        low, high: range of its labels.
        classes: accuracy by name -> how a polarity becomes a class; "acc3" has negative, neutral, positive.
        signs: ending of acc2 and f1 -> the two classes.
        clipped: both predictions and labels are clipped to the range, and compared in the narrower of their dtypes,
            before any metric.
        text_case: case of transcripts that language models read best (see ``data/text.py``).
        label_rows: numbers in a row of labels -> what they are, where the first of them is the polarity.
    """

    title: str
    low: float
    high: float
    classes: Mapping[str, Rounded | Bins]
    signs: Mapping[str, Signs]
    clipped: bool
    text_case: str
    label_rows: Mapping[int, str] = field(default_factory=dict)

    def steps(self, count: int) -> tuple[float, ...]:
        """So many polarities from the lowest label to the highest, evenly apart."""
        return tuple(self.low + (self.high - self.low) * i / (count - 1) for i in range(count))


_ROUNDED = {"acc7": Rounded(3), "acc5": Rounded(2), "acc3": Rounded(1)}
_HAS0_NON0 = {"_has0": Signs("positive"), "_non0": Signs("none")}

TASKS: dict[str, RegressionTask] = {
    "mosi": RegressionTask(
        title="CMU-MOSI",
        low=-3.0,
        high=3.0,
        classes=_ROUNDED,
        signs=_HAS0_NON0,
        clipped=False,
        text_case="lower",  # its transcripts are upper case throughout
    ),
    "mosei": RegressionTask(
        title="CMU-MOSEI",
        low=-3.0,
        high=3.0,
        classes=_ROUNDED,
        signs=_HAS0_NON0,
        clipped=False,
        text_case="keep",
        label_rows={7: "CMU-MOSEI's sentiment and six emotions"},
    ),
    "sims": RegressionTask(
        title="CH-SIMS",
        low=-1.0,
        high=1.0,
        classes={"acc5": Bins((-0.7, -0.1, 0.1, 0.7)), "acc3": Bins((-0.1, 0.1))},
        signs={"": Signs("negative")},
        clipped=True,
        text_case="keep",
    ),
}


def task_of(dataset: str) -> RegressionTask:
    """The rules of ``dataset``.

    Raises:
        ConfigError: no such data set; the message names the nearest.
    """
    if dataset not in TASKS:
        known = ", ".join(TASKS)
        raise ConfigError(f"dataset={dataset!r}: expected one of {known}{suggest(str(dataset), TASKS)}")
    return TASKS[dataset]


def described_ranges(names: Iterable[str] = TASKS) -> str:
    """For help texts: which label range holds for which data sets."""
    ranges: dict[tuple[float, float], list[str]] = {}
    for name in names:
        ranges.setdefault((TASKS[name].low, TASKS[name].high), []).append(name)
    return ", ".join(f"{' and '.join(sets)} [{low:g}, {high:g}]" for (low, high), sets in ranges.items())
