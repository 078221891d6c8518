"""Plots of one split's predictions: which classes are taken for which, and whether a prediction means what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmlf_llm.extras import installed, missing
from deepmlf_llm.files import write_aside
from deepmlf_llm.statistics.predictions import Predictions
from deepmlf_llm.statistics.seeds import t_interval
from deepmlf_llm.statistics.style import COLOURS, figure, legend_below, svg
from deepmlf_llm.tasks.class_metrics import decided, probabilities
from deepmlf_llm.tasks.classification import ClassificationTask
from deepmlf_llm.tasks.metrics import comparable
from deepmlf_llm.tasks.regression import Bins, Rounded

PLOTS = "confusion.svg", "calibration.svg"
MOST_CLASSES = 20  # in a plot of confusion
GROUPS = 10  # of predictions, in a calibration plot
_LEAST = 5  # utterances in a group


def write_plots(directory: Path, predictions: Predictions, prefix: str = "") -> str | None:
    """Writes ``confusion.svg`` and ``calibration.svg``.

    Args:
        directory: where.
        predictions: of one split.
        prefix: before both names.

    Returns:
        None; or the sentence that says why there are none: matplotlib is not installed.

    Raises:
        FileError: they cannot be written.
    """
    if not installed("matplotlib"):
        return missing("matplotlib", "no plots: drawing them")
    counted = confusion_counts(predictions)
    if counted is not None:
        write_aside(directory / f"{prefix}{PLOTS[0]}", confusion_plot(predictions, *counted))
    write_aside(directory / f"{prefix}{PLOTS[1]}", calibration_plot(predictions))
    return None


def confusion_counts(predictions: Predictions) -> tuple[NDArray[np.int64], list[str]] | None:
    """How often each class was taken for each.

    Returns:
        Counts [true x predicted], and the classes' names: those of the data set's finest accuracy, or of the task. None
        where there are no classes that exclude one another, or more than a plot can show.
    """
    task = predictions.rules
    if isinstance(task, ClassificationTask):
        if task.several or len(task.classes) > MOST_CLASSES:
            return None
        said, true = decided(predictions.head(), predictions.labels, task)
        names = list(task.classes)
    else:
        rule = next(iter(task.classes.values()), None)
        if rule is None:  # a task of one's own may have no bins
            return None
        y_hat, y = comparable(predictions.head(), predictions.labels, task)
        said, true, names = rule(y_hat), rule(y), class_names(rule)
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(counts, (true, said), 1)
    return counts, names


def class_names(rule: Rounded | Bins) -> list[str]:
    """The classes of an accuracy, as an axis shows them."""
    if isinstance(rule, Rounded):
        return [f"{value:+d}" if value else "0" for value in range(-rule.limit, rule.limit + 1)]
    between = [f"{low:g} to {high:g}" for low, high in zip(rule.edges, rule.edges[1:], strict=False)]
    return [f"to {rule.edges[0]:g}", *between, f"above {rule.edges[-1]:g}"]


def confusion_plot(predictions: Predictions, counts: NDArray[np.int64], names: list[str]) -> bytes:
    """An SVG: each row a true class, shaded by the share of its utterances, with their number."""
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    with figure(5.0, 4.6) as (drawn, (ax,)):
        ax.grid(False)
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row, column in zip(*np.nonzero(counts), strict=True):
            dark = shares[row, column] > 0.6
            ax.text(column, row, counts[row, column], ha="center", va="center", color="white" if dark else "black")
        ax.set_xticks(range(len(names)), names)
        ax.set_yticks(range(len(names)), names)
        ax.set_xlabel("predicted class")
        ax.set_ylabel("true class")
        ax.set_title(f"{predictions.split}: {counts.sum()} utterances")
        return svg(drawn)


def calibration_groups(predictions: Predictions) -> list[tuple[float, Any]]:
    """Predictions in groups of like value: the mean of each, and the mean of what is true with its interval: the label,
    or of classes whether a decision is right."""
    task = predictions.rules
    if isinstance(task, ClassificationTask):
        said, true = decided(predictions.head(), predictions.labels, task)
        chances = probabilities(predictions.head(), task)
        values, truth = (chances, true) if task.several else (chances.max(axis=1), said == true)
        x, y = values.reshape(-1), truth.reshape(-1).astype(np.float64)
    else:
        x, y = comparable(predictions.head(), predictions.labels, task)
    order = np.argsort(x, kind="stable")
    groups = np.array_split(order, max(1, min(GROUPS, len(order) // _LEAST)))
    return [(float(x[rows].mean()), t_interval([float(value) for value in y[rows]])) for rows in groups]


def calibration_plot(predictions: Predictions) -> bytes:
    """An SVG: what is true against what is predicted in groups of like prediction; on the line where the scale is
    right."""
    task = predictions.rules
    of_classes = isinstance(task, ClassificationTask)
    ends = (0.0, 1.0) if isinstance(task, ClassificationTask) else (task.low, task.high)
    with figure(4.4, 4.4) as (drawn, (ax,)):
        line = ax.plot(ends, ends, color="#555555", linewidth=1, label="right scale")
        groups = calibration_groups(predictions)
        for x, mean in groups:
            if mean.half is not None:
                ax.vlines(x, mean.low, mean.high, color=COLOURS[0], linewidth=1.1, alpha=0.55)
        xs, ys = [x for x, _ in groups], [mean.mean for _, mean in groups]
        points = ax.plot(xs, ys, "o", color=COLOURS[0], label=f"mean of {len(groups)} groups, 95 % interval")
        ax.set_xlabel("mean probability" if of_classes else "mean predicted polarity")
        ax.set_ylabel("share that is right" if of_classes else "mean true polarity")
        ax.set_title(f"{predictions.split}: {len(predictions.labels)} utterances")
        legend_below(drawn, [*line, *points], 1)
        return svg(drawn)
