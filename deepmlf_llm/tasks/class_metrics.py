"""Metrics of classes: accuracy, F1, a table with one row a class, the confusion of classes; scikit-learn counts."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmlf_llm.errors import DataError
from deepmlf_llm.extras import require
from deepmlf_llm.tasks.classification import ClassificationTask, check_class_labels

CLASS_METRICS: dict[str, str] = {
    "acc": "classes: share of utterances whose class is found; several labels: all classes of an utterance right",
    "acc_labels": "several labels: share of right decisions over utterances and classes",
    "f1_weighted": "classes: F1 of each class, weighted by the number of labels that are it",
    "f1_macro": "classes: mean F1 over the classes that any label or prediction has",
}


def undefined(names: str, why: str) -> float:
    """NaN, and one warning that says why."""
    warnings.warn(f"{names}: NaN, because {why}", UserWarning, stacklevel=4)
    return math.nan


def class_metrics(logits: NDArray[Any], labels: NDArray[Any], task: ClassificationTask) -> dict[str, float]:
    """``acc``, ``f1_weighted`` and ``f1_macro``; with several labels ``acc_labels`` too.

    Notation used for shapes: n utterances, c classes.

    Args:
        logits: [n x c].
        labels: indices of classes [n], or with several labels 0 and 1 [n x c].
        task: whose classes they are.

    Raises:
        DataError: shapes that do not fit, no utterance, values that are not finite, labels that are not classes.
    """
    found, true = decided(logits, labels, task)
    present = _present(found, true, task)
    metrics = {"acc": float((found == true).reshape(len(true), -1).all(axis=1).mean())}
    if task.several:
        metrics["acc_labels"] = float((found == true).mean())
    if not present:
        value = undefined("f1_weighted and f1_macro", "no utterance has a class")
        return metrics | {"f1_weighted": value, "f1_macro": value}
    f1_score = require("sklearn.metrics", "F1").f1_score
    for average in ("weighted", "macro"):
        metrics[f"f1_{average}"] = float(f1_score(true, found, labels=present, average=average, zero_division=0))
    return metrics


def class_table(logits: NDArray[Any], labels: NDArray[Any], task: ClassificationTask) -> dict[str, Any]:
    """What a result says of each class.

    Args:
        logits, labels, task: as for :func:`class_metrics`.

    Returns:
        ``table``: class -> ``precision``, ``recall``, ``f1``, ``labels`` (how many there are); ``confusion``: a row a
        true class, a column a predicted one, counts; with several labels class -> ``[[true negatives, false
        positives], [false negatives, true positives]]``.

    Raises:
        DataError: as there.
    """
    found, true = decided(logits, labels, task)
    scores = require("sklearn.metrics", "the table of classes")
    everyone = list(range(len(task.classes)))
    columns = scores.precision_recall_fscore_support(true, found, labels=everyone, zero_division=0)
    names = ("precision", "recall", "f1", "labels")
    table = {
        task.classes[k]: {name: column[k].item() for name, column in zip(names, columns, strict=True)} for k in everyone
    }
    if task.several:
        each = scores.multilabel_confusion_matrix(true, found, labels=everyone).tolist()
        return {"table": table, "confusion": dict(zip(task.classes, each, strict=True))}
    return {"table": table, "confusion": scores.confusion_matrix(true, found, labels=everyone).tolist()}


def decide(logits: NDArray[Any], task: ClassificationTask) -> NDArray[np.int64]:
    """The predicted class [n]; with several labels 1 where a class is more probable than not [n x c]."""
    decided: NDArray[np.int64] = (logits > 0 if task.several else logits.argmax(axis=-1)).astype(np.int64)
    return decided


def probabilities(logits: NDArray[Any], task: ClassificationTask) -> NDArray[np.float64]:
    """Of each class [.. x c], float64: they add up to 1; with several labels each is of its own."""
    x = np.asarray(logits, dtype=np.float64)
    if task.several:
        return np.exp(-np.logaddexp(0.0, -x))
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    result: NDArray[np.float64] = x / x.sum(axis=-1, keepdims=True)
    return result


def _present(found: NDArray[np.int64], true: NDArray[np.int64], task: ClassificationTask) -> list[int]:
    if task.several:
        return np.flatnonzero((found | true).any(axis=0)).tolist()
    return np.union1d(found, true).tolist()


def decided(
    logits: NDArray[Any], labels: NDArray[Any], task: ClassificationTask
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Predicted and true classes, as :func:`decide` has them; arguments and errors are :func:`class_metrics`'."""
    n, c = len(labels), len(task.classes)
    if logits.shape != (n, c) or labels.shape != ((n, c) if task.several else (n,)):
        raise DataError(
            f"logits of shape {logits.shape} and labels of shape {labels.shape}: expected [n x {c}] and "
            f"{f'[n x {c}]' if task.several else '[n]'}"
        )
    if not n:
        raise DataError("logits and labels are empty: expected at least one utterance")
    if not np.isfinite(logits).all():
        raise DataError("logits hold values that are not finite")
    check_class_labels(labels, task, "labels")
    return decide(logits, task), labels.astype(np.int64)
