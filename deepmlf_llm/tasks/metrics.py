"""The field's metrics for CMU-MOSI, CMU-MOSEI, CH-SIMS and sets of classes, by names that state the rule.

Papers report "Acc2" and "F1" under several rules; here a name stands for one of them (:data:`METRIC_DEFINITIONS`).
Polarity is in [-3, 3] for MOSI and MOSEI, in [-1, 1] for SIMS and SIMS v2.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepmlf_llm.errors import DataError
from deepmlf_llm.extras import require
from deepmlf_llm.tasks.class_metrics import CLASS_METRICS, class_metrics, undefined
from deepmlf_llm.tasks.classification import ClassificationTask
from deepmlf_llm.tasks.registry import Task, regression_of, task_of
from deepmlf_llm.tasks.regression import Floats

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
    "acc_bins": "a task of one's own with bins: share of utterances whose prediction falls into the label's bin",
    "f1_bins": "F1 on the classes of acc_bins, weighted by the labels' share of each class",
    **CLASS_METRICS,
}


def task_metrics(outputs: ArrayLike, labels: ArrayLike, task: str | Task) -> dict[str, float]:
    """The metrics of one split for any task: :func:`polarity_metrics`, or those of classes.

    Args:
        outputs: predicted polarity [n], or logits [n x c].
        labels: as the data hold them.
        task: or the name of a shipped data set.

    Raises:
        ConfigError, DataError: as for :func:`polarity_metrics`.
    """
    rules = task_of(task)
    if isinstance(rules, ClassificationTask):
        return class_metrics(_to_numpy(outputs), _to_numpy(labels), rules)
    return polarity_metrics(outputs, labels, rules)


def metric_names(task: str | Task) -> list[str]:
    """Names of a task's metrics, in their order."""
    rules = task_of(task)
    if isinstance(rules, ClassificationTask):
        return [name for name in CLASS_METRICS if rules.several or name != "acc_labels"]
    middle = (rules.low + rules.high) / 2
    return list(polarity_metrics([rules.low, rules.high, middle], [rules.low, rules.high, middle], rules))


def higher_is_better(metric: str) -> bool:
    """Whether a metric of :data:`METRIC_DEFINITIONS` grows with quality; the loss does not."""
    return metric.startswith(("corr", "acc", "f1"))


def polarity_metrics(predictions: ArrayLike, labels: ArrayLike, dataset: str | Task) -> dict[str, float]:
    """The metrics of one split, in the order in which papers print them.

    Args:
        predictions: predicted polarity [n], array or CPU tensor. Pass it as the model made it: the SIMS edges are
            compared in its dtype, because float32(-0.7) counts as <= -0.7 and a copy in float64 does not.
        labels: true polarity [n].
        dataset: ``"mosi"``, ``"mosei"`` (``mae, corr, acc7, acc5, acc3, acc2_has0, f1_has0, acc2_non0, f1_non0``),
            ``"sims"``, ``"simsv2"`` (``mae, corr, acc5, acc3, acc2, f1``), or a task of one's own (``mae, corr`` and
            with bins ``acc_bins, f1_bins``); see :data:`METRIC_DEFINITIONS`.

    Returns:
        Name -> value. A value that the inputs leave undefined is NaN, and one warning says why.

    Raises:
        ConfigError: unknown ``dataset``, or one of classes.
        DataError: shapes differ or are not [n], there are no samples, or a value is not finite.
    """
    task = regression_of(dataset)
    y_hat, y = comparable(predictions, labels, task)
    metrics = {"mae": _mae(y_hat, y), "corr": _corr(y_hat, y)}
    for name, classes in task.classes.items():
        metrics[name] = _accuracy(classes(y_hat), classes(y))
    for ending, signs in task.signs.items():
        rows = signs.counted(y)
        names = f"acc2{ending}", f"f1{ending}"
        if rows.any():
            values = _two_classes(signs(y_hat[rows]), signs(y[rows]))
        else:
            values = (undefined(" and ".join(names), "every label is 0"),) * 2
        metrics.update(zip(names, values, strict=True))
    metrics |= {name: _weighted_f1(classes(y_hat), classes(y)) for name, classes in task.f1.items()}
    return metrics


def comparable(predictions: ArrayLike, labels: ArrayLike, dataset: str | Task) -> tuple[Floats, Floats]:
    """Predictions and labels [n] as every metric of ``dataset`` looks at them: finite, and clipped where it clips.

    Raises:
        ConfigError, DataError: as :func:`polarity_metrics`.
    """
    task = regression_of(dataset)
    y_hat, y = _as_floats(predictions, "predictions"), _as_floats(labels, "labels")
    if y_hat.shape != y.shape:
        raise DataError(f"predictions of shape {y_hat.shape} against labels of shape {y.shape}: expected the same")
    if y.size == 0:
        raise DataError("predictions and labels are empty: expected at least one sample")
    if task.clipped:
        # Never widen: a float32 label that is compared in float64 moves a bin up at -0.7, -0.1, 0.1 and 0.7.
        y = y.astype(min(y.dtype, y_hat.dtype, key=lambda dtype: dtype.itemsize))
        y_hat, y = np.clip(y_hat, task.low, task.high), np.clip(y, task.low, task.high)
    return y_hat, y


def polarity_label(y: float | np.floating[Any], dataset: str | Task) -> str | None:
    """``"negative"``, ``"neutral"`` or ``"positive"``: the class that ``acc3`` of the data set puts ``y`` in.

    A task of one's own has its own names, and None without them.

    MOSI and MOSEI: neutral where y rounds to 0, which is -0.5 <= y <= 0.5. SIMS: neutral where -0.1 < y <= 0.1,
    compared in the dtype of ``y``.

    Raises:
        ConfigError: unknown ``dataset``, or one of classes.
        DataError: ``y`` is not one finite number.
    """
    task = regression_of(dataset)
    value = _as_floats(np.atleast_1d(_to_numpy(y)), "polarity")
    if value.size != 1:
        raise DataError(f"polarity of shape {value.shape}: expected one number")
    return None if task.bins is None else task.names[int(task.bins(value)[0])]


def _mae(y_hat: Floats, y: Floats) -> float:
    return float(np.abs(y_hat.astype(np.float64) - y.astype(np.float64)).mean())


def _corr(y_hat: Floats, y: Floats) -> float:
    constant = [name for name, values in (("predictions", y_hat), ("labels", y)) if np.all(values == values[0])]
    if constant:
        return undefined("corr", f"{' and '.join(constant)} never vary")
    pearsonr = require("scipy.stats", "the correlation of polarities").pearsonr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it warns of ends in NaN, explained below, or concerns the last digits
        r = float(pearsonr(y_hat.astype(np.float64), y.astype(np.float64)).statistic)
    return undefined("corr", "predictions or labels vary too little or too much for float64") if math.isnan(r) else r


def _accuracy(predicted: NDArray[Any], true: NDArray[Any]) -> float:
    return float((predicted == true).mean())


def _two_classes(predicted: NDArray[Any], true: NDArray[Any]) -> tuple[float, float]:
    return _accuracy(predicted, true), _weighted_f1(predicted, true)


def _weighted_f1(predicted: NDArray[Any], true: NDArray[Any]) -> float:
    f1_score = require("sklearn.metrics", "F1").f1_score

    return float(f1_score(true, predicted, average="weighted", zero_division=0))


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
