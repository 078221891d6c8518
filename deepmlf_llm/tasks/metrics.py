"""The field's metrics for CMU-MOSI, CMU-MOSEI and CH-SIMS, by names that state the rule.

Papers report "Acc2" and "F1" under several rules; here a name stands for one of them (:data:`METRIC_DEFINITIONS`).
Polarity is in [-3, 3] for MOSI and MOSEI, in [-1, 1] for SIMS.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepmlf_llm.errors import ConfigError, DataError, suggest
from deepmlf_llm.extras import require

Floats = NDArray[np.floating[Any]]

METRIC_DEFINITIONS: dict[str, str] = {
    "mae": "mean absolute error in units of the polarity scale (SIMS: both sides clipped to +-1 first)",
    "corr": "Pearson correlation of predictions and labels (SIMS: both sides clipped to +-1 first)",
    "acc7": "MOSI, MOSEI: both sides clipped to +-3 and rounded half to even; share of equal classes",
    "acc5": "MOSI, MOSEI: both sides clipped to +-2 and rounded half to even; "
    "SIMS: bins (-1.01, -.7], (-.7, -.1], (-.1, .1], (.1, .7], (.7, 1.01]; share of equal classes",
    "acc3": "MOSI, MOSEI: both sides clipped to +-1 and rounded half to even; "
    "SIMS: bins (-1.01, -.1], (-.1, .1], (.1, 1.01]; share of equal classes",
    "acc2_has0": "MOSI, MOSEI: y >= 0 against y < 0 on all samples; share of equal classes",
    "f1_has0": "F1 on the classes of acc2_has0, weighted by the labels' share of each class",
    "acc2_non0": "MOSI, MOSEI: y > 0 against y <= 0 on the samples whose label is not 0; share of equal classes",
    "f1_non0": "F1 on the classes and samples of acc2_non0, weighted by the labels' share of each class",
    "acc2": "SIMS: bins (-1.01, 0], (0, 1.01]; share of equal classes",
    "f1": "SIMS: F1 on the classes of acc2, weighted by the labels' share of each class",
}

# Inner edges of the SIMS bins, each bin open below and closed above; the outer ones (+-1.01) hold all that is clipped.
_SIMS_EDGES = {2: (0.0,), 3: (-0.1, 0.1), 5: (-0.7, -0.1, 0.1, 0.7)}
_DATASETS = ("mosi", "mosei", "sims")


def polarity_metrics(predictions: ArrayLike, labels: ArrayLike, dataset: str) -> dict[str, float]:
    """The metrics of one split, in the order in which papers print them.

    Args:
        predictions: predicted polarity [n], array or CPU tensor. Pass it as the model made it: the SIMS edges are
            compared in its dtype, because float32(-0.7) counts as <= -0.7 and a copy in float64 does not.
        labels: true polarity [n].
        dataset: ``"mosi"``, ``"mosei"`` (``mae, corr, acc7, acc5, acc3, acc2_has0, f1_has0, acc2_non0, f1_non0``) or
            ``"sims"`` (``mae, corr, acc5, acc3, acc2, f1``); see :data:`METRIC_DEFINITIONS`.

    Returns:
        Name -> value. A value that the inputs leave undefined is NaN, and one warning says why.

    Raises:
        ConfigError: unknown ``dataset``.
        DataError: shapes differ or are not [n], there are no samples, or a value is not finite.
    """
    _check_dataset(dataset)
    y_hat, y = _as_floats(predictions, "predictions"), _as_floats(labels, "labels")
    if y_hat.shape != y.shape:
        raise DataError(f"predictions of shape {y_hat.shape} against labels of shape {y.shape}: expected the same")
    if y.size == 0:
        raise DataError("predictions and labels are empty: expected at least one sample")
    return _sims_metrics(y_hat, y) if dataset == "sims" else _mosi_metrics(y_hat, y)


def polarity_label(y: float | np.floating[Any], dataset: str) -> str:
    """``"negative"``, ``"neutral"`` or ``"positive"``: the class that ``acc3`` of the data set puts ``y`` in.

    MOSI and MOSEI: neutral where y rounds to 0, which is -0.5 <= y <= 0.5. SIMS: neutral where -0.1 < y <= 0.1,
    compared in the dtype of ``y``.

    Raises:
        ConfigError: unknown ``dataset``.
        DataError: ``y`` is not one finite number.
    """
    _check_dataset(dataset)
    value = _as_floats(np.atleast_1d(_to_numpy(y)), "polarity")
    if value.size != 1:
        raise DataError(f"polarity of shape {value.shape}: expected one number")
    index = _sims_bins(value, 3) if dataset == "sims" else _rounded(value, 1) + 1
    return ("negative", "neutral", "positive")[int(index[0])]


def _mosi_metrics(y_hat: Floats, y: Floats) -> dict[str, float]:
    metrics = {"mae": _mae(y_hat, y), "corr": _corr(y_hat, y)}
    for limit in (3, 2, 1):
        metrics[f"acc{2 * limit + 1}"] = _accuracy(_rounded(y_hat, limit), _rounded(y, limit))
    metrics["acc2_has0"] = _accuracy(y_hat >= 0, y >= 0)
    metrics["f1_has0"] = _weighted_f1(y_hat >= 0, y >= 0)
    non0 = y != 0
    if non0.any():
        metrics["acc2_non0"] = _accuracy(y_hat[non0] > 0, y[non0] > 0)
        metrics["f1_non0"] = _weighted_f1(y_hat[non0] > 0, y[non0] > 0)
    else:
        metrics["acc2_non0"] = metrics["f1_non0"] = _undefined("acc2_non0 and f1_non0", "every label is 0")
    return metrics


def _sims_metrics(y_hat: Floats, y: Floats) -> dict[str, float]:
    # Never widen: a float32 label that is compared in float64 moves a bin up at -0.7, -0.1, 0.1 and 0.7.
    y = y.astype(min(y.dtype, y_hat.dtype, key=lambda dtype: dtype.itemsize))
    y_hat, y = np.clip(y_hat, -1, 1), np.clip(y, -1, 1)
    metrics = {"mae": _mae(y_hat, y), "corr": _corr(y_hat, y)}
    for classes in (5, 3, 2):
        metrics[f"acc{classes}"] = _accuracy(_sims_bins(y_hat, classes), _sims_bins(y, classes))
    metrics["f1"] = _weighted_f1(_sims_bins(y_hat, 2), _sims_bins(y, 2))
    return metrics


def _mae(y_hat: Floats, y: Floats) -> float:
    return float(np.abs(y_hat.astype(np.float64) - y.astype(np.float64)).mean())


def _corr(y_hat: Floats, y: Floats) -> float:
    constant = [name for name, values in (("predictions", y_hat), ("labels", y)) if np.all(values == values[0])]
    if constant:
        return _undefined("corr", f"{' and '.join(constant)} never vary")
    pearsonr = require("scipy.stats", "the correlation of polarities").pearsonr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it warns of ends in NaN, explained below, or concerns the last digits
        r = float(pearsonr(y_hat.astype(np.float64), y.astype(np.float64)).statistic)
    return _undefined("corr", "predictions or labels vary too little or too much for float64") if math.isnan(r) else r


def _rounded(y: Floats, limit: int) -> NDArray[np.int64]:
    """Classes -limit .. limit; halves go to the even neighbour."""
    return np.round(np.clip(y, -limit, limit)).astype(np.int64)


def _sims_bins(y: Floats, classes: int) -> NDArray[np.int64]:
    """Index of the bin, 0 .. classes - 1: how many edges lie strictly below ``y``."""
    return np.searchsorted(np.asarray(_SIMS_EDGES[classes], dtype=y.dtype), y, side="left").astype(np.int64)


def _accuracy(predicted: NDArray[Any], true: NDArray[Any]) -> float:
    return float((predicted == true).mean())


def _weighted_f1(predicted: NDArray[Any], true: NDArray[Any]) -> float:
    f1_score = require("sklearn.metrics", "F1").f1_score

    return float(f1_score(true, predicted, average="weighted", zero_division=0))


def _undefined(names: str, why: str) -> float:
    warnings.warn(f"{names}: NaN, because {why}", UserWarning, stacklevel=4)
    return math.nan


def _check_dataset(dataset: str) -> None:
    if dataset not in _DATASETS:
        known = ", ".join(map(repr, _DATASETS))
        raise ConfigError(f"dataset={dataset!r}: expected one of {known}{suggest(str(dataset), _DATASETS)}")


def _to_numpy(values: Any) -> Any:
    if hasattr(values, "detach"):  # a tensor; NumPy has no bfloat16
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values.numpy()
    return np.asarray(values)


def _as_floats(values: Any, name: str) -> Floats:
    """``values`` as finite floats [n], in their own float dtype."""
    try:
        array = _to_numpy(values)
        array = array if np.issubdtype(array.dtype, np.floating) else array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: expected real numbers ({error})") from error
    if array.ndim != 1:
        raise DataError(f"{name} of shape {array.shape}: expected one value per sample, [n]")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise DataError(f"{name}: {bad.size} of {array.size} values are not finite, the first at index {bad[0]}")
    return array
