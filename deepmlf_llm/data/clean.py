"""Standardisation and the values that are not numbers.

Mean and standard deviation of each dimension come from the real, finite values of the TRAINING split: padding is cut
off before, and nothing of validation or test enters. A NaN or infinity (COVAREP writes -inf where a frame is silent) is
counted and takes the training mean, which is 0 after standardisation: the network then reads "nothing unusual". Last,
values beyond ``clip`` standard deviations are counted and cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from deepmlf_llm.data.ragged import Ragged
from deepmlf_llm.errors import DataError

DEFAULT_CLIP = 10.0
STD_FLOOR = 1e-6
"""A deviation below this part of the mean's size is rounding of float32: the dimension counts as constant. Relative, so
that a feature of small numbers (seconds, volts) is no constant."""

_BLOCK = 16384  # frames at a time, so that float64 arithmetic never doubles the memory of a corpus


@dataclass
class Standardisation:
    """How raw features became what the model reads; travels with the data, the adapter and the merged model.

    Attributes:
        mean: of each dimension over the real frames of the training split [d].
        std: its standard deviation [d]; 1 where ``constant``.
        clip: results are cut at +- this many standard deviations; None: never.
        constant: dimensions that never varied in training. They become 0 everywhere: no weight can have learnt what a
            deviation there means.
    """

    mean: list[float]
    std: list[float]
    clip: float | None = DEFAULT_CLIP
    constant: list[int] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Cleaned:
    """How many values were NaN, +inf, -inf, and beyond the clip."""

    nan: int = 0
    positive_inf: int = 0
    negative_inf: int = 0
    clipped: int = 0

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    def __add__(self, other: Cleaned) -> Cleaned:
        return Cleaned(**{name: count + getattr(other, name) for name, count in asdict(self).items()})


def fit_standardisation(training: Ragged, clip: float | None = DEFAULT_CLIP) -> Standardisation:
    """Statistics of the training split, in float64 and two passes.

    Args:
        training: real frames only.
        clip: see :class:`Standardisation`.
    """
    count = np.zeros(training.dim, dtype=np.int64)
    total = np.zeros(training.dim)
    for values, finite in _blocks(training.values):
        count += finite.sum(axis=0)
        total += values.sum(axis=0)
    divisor = np.maximum(count, 1)
    mean = total / divisor
    squares = np.zeros(training.dim)
    for values, finite in _blocks(training.values):
        squares += np.where(finite, (values - mean) ** 2, 0.0).sum(axis=0)
    std = np.sqrt(squares / divisor)
    constant = std <= np.maximum(STD_FLOOR * np.abs(mean), np.finfo(np.float32).tiny)
    std[constant] = 1.0
    return Standardisation(mean.tolist(), std.tolist(), clip, np.flatnonzero(constant).tolist())


def _blocks(values: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Frames in float64 with 0 for what is not finite, and where they are finite."""
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK].astype(np.float64)
        finite = np.isfinite(block)
        yield np.where(finite, block, 0.0), finite


def standardise(
    features: np.ndarray, standardisation: Standardisation | Mapping[str, Any], *, out: np.ndarray | None = None
) -> tuple[np.ndarray, Cleaned]:
    """Raw frames -> what the model reads; training data and predictions both pass here.

    Args:
        features: raw frames of any number type [t x d].
        standardisation: as fitted, or as the manifest holds it.
        out: where to write, float32 [t x d]; may be ``features`` itself.

    Returns:
        The standardised frames, float32 [t x d], all finite, and what was cleaned.

    Raises:
        DataError: ``features`` has another number of dimensions than the standardisation.
    """
    if not isinstance(standardisation, Standardisation):
        standardisation = Standardisation(**standardisation)
    dim = len(standardisation.mean)
    if features.ndim != 2 or features.shape[1] != dim:
        raise DataError(f"features of shape {features.shape}: expected (frames, {dim}), as in training")
    mean, std, clip = np.array(standardisation.mean), np.array(standardisation.std), standardisation.clip
    result = np.empty(features.shape, dtype=np.float32) if out is None else out
    cleaned = Cleaned()
    for start in range(0, len(features), _BLOCK):
        block = features[start : start + _BLOCK].astype(np.float64)
        nan, finite = np.isnan(block), np.isfinite(block)
        cleaned.nan += int(nan.sum())
        cleaned.positive_inf += int((block == np.inf).sum())
        cleaned.negative_inf += int((block == -np.inf).sum())
        block = np.where(finite, (np.where(finite, block, 0.0) - mean) / std, 0.0)
        block[:, standardisation.constant] = 0.0
        if clip is not None:
            cleaned.clipped += int((np.abs(block) > clip).sum())
            block.clip(-clip, clip, out=block)
        limit = np.finfo(np.float32).max  # only reached without a clip
        result[start : start + _BLOCK] = block.clip(-limit, limit)
    return result, cleaned
