"""Labels that are numbers: every rule in which CMU-MOSI, CMU-MOSEI, CH-SIMS and CH-SIMS v2 differ, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

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
    """The rules of one data set whose labels are regressed.

    Attributes:
        name: of the data set, as settings and files have it.
        title: how papers call the data set.
        low, high: range of its labels.
        classes: accuracy by name -> how a label becomes a class.
        signs: ending of acc2 and f1 -> the two classes.
        f1: weighted F1 by name -> how a label becomes a class.
        clipped: both predictions and labels are clipped to the range, and compared in the narrower of their dtypes,
            before any metric.
        text_case: case of transcripts that language models read best (see ``data/text.py``).
        label_rows: numbers in a row of labels -> what they are, where the first of them is the polarity.
        bins: how a label becomes one of ``names``; None: it has no name.
        names: of those classes, from low to high.
    """

    kind: ClassVar[str] = "regression"
    num_outputs: ClassVar[int] = 1
    best_metric: ClassVar[str] = "mae"

    name: str
    title: str
    low: float
    high: float
    classes: Mapping[str, Rounded | Bins]
    signs: Mapping[str, Signs]
    clipped: bool
    text_case: str
    label_rows: Mapping[int, str] = field(default_factory=dict)
    f1: Mapping[str, Rounded | Bins] = field(default_factory=dict)
    bins: Rounded | Bins | None = None
    names: tuple[str, ...] = ("negative", "neutral", "positive")

    def describe(self) -> str:
        """What a label is, in a few words."""
        return f"a number in [{self.low:g}, {self.high:g}]"

    def differences(self, other: Any) -> str:
        """In what the labels of another task mean something else, in words; empty where they do not."""
        same = isinstance(other, RegressionTask) and (self.name, self.low, self.high, self.bins, self.names) == (
            other.name,
            other.low,
            other.high,
            other.bins,
            other.names,
        )
        return "" if same else f"{self.name!r}, {self.describe()}, not {other.name!r}, {other.describe()}"

    def to_dict(self) -> dict[str, Any] | None:
        """What a file holds of it beside its name: nothing, the name of a shipped data set says all."""
        return None

    def steps(self, count: int) -> tuple[float, ...]:
        """So many polarities from the lowest label to the highest, evenly apart."""
        return tuple(self.low + (self.high - self.low) * i / (count - 1) for i in range(count))


_ROUNDED = {"acc7": Rounded(3), "acc5": Rounded(2), "acc3": Rounded(1)}
_HAS0_NON0 = {"_has0": Signs("positive"), "_non0": Signs("none")}
_SIMS_ACC3 = Bins((-0.1, 0.1))

MOSI = RegressionTask(
    name="mosi",
    title="CMU-MOSI",
    low=-3.0,
    high=3.0,
    classes=_ROUNDED,
    signs=_HAS0_NON0,
    clipped=False,
    text_case="lower",  # its transcripts are upper case throughout
    bins=_ROUNDED["acc3"],
)
MOSEI = replace(
    MOSI,
    name="mosei",
    title="CMU-MOSEI",
    text_case="keep",
    label_rows={7: "CMU-MOSEI's sentiment and six emotions"},
)
SIMS = RegressionTask(
    name="sims",
    title="CH-SIMS",
    low=-1.0,
    high=1.0,
    classes={"acc5": Bins((-0.7, -0.1, 0.1, 0.7)), "acc3": _SIMS_ACC3},
    signs={"": Signs("negative")},
    clipped=True,
    text_case="keep",
    bins=_SIMS_ACC3,
)
SIMS_V2 = replace(SIMS, name="simsv2", title="CH-SIMS v2")
