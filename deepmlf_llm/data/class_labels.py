"""Labels that are classes, as files write them, and what they become: an index, or 0 and 1 for each class.

One class an utterance: its name, or its index (a whole number, true or false). Several: a list of names, in one text
with ``|``, ``;`` or ``,`` between them, or one number a class, above 0 where it holds. Which names there are is said by
the task, or found in the data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from deepmlf_llm.data.corpus import Corpus, Utterances
from deepmlf_llm.data.values import is_column, listed, row_name
from deepmlf_llm.errors import DataError, suggest
from deepmlf_llm.tasks.classification import (
    BALANCED,
    FEWEST_CLASSES,
    MOST_CLASSES,
    ClassificationTask,
    balanced_weights,
    check_class_labels,
    class_counts,
)
from deepmlf_llm.tasks.registry import Task

CLASS_LABELS = ("classification_labels", "labels", "label", "annotations")
"""Columns of an MMSA split that may hold classes; the first that is there is read."""
CLASS_KEYS = ("label", "labels", "classification_labels")
"""The same for utterances that are one object each."""

_MARKS = "|;,"
_WHOLE = re.compile(r"[0-9]{1,9}\.0+")  # an index as tables of floats have it
_TRUTH = {"true": 1, "false": 0}


def read_classes(
    values: Any, task: ClassificationTask, where: str, ids: Sequence[str] | None = None, labelled: bool = True
) -> np.ndarray:
    """Labels as a file has them, one object a row [N]: a name or an index, or with several labels a tuple of names or
    one number a class; None where there is none. :func:`resolve_labels` makes numbers of them.

    Raises:
        DataError: a row that holds no class, or, ``labelled``, nothing; by name.
    """
    if not is_column(values):
        raise DataError(f"{where}: expected {task.describe()} a row, found one {type(values).__name__}")
    rows, wrong = list(values), []
    found = np.empty(len(rows), dtype=object)
    for row, value in enumerate(rows):
        try:
            found[row] = _several(value, task) if task.several else _one(value)
            if found[row] is None and labelled:
                raise ValueError("no label")
        except ValueError as error:
            wrong.append(f"{row_name(row, ids)} is {_short(value)} ({error})")
    if wrong:
        raise DataError(f"{where}: expected {task.describe()}, but {listed(wrong)}")
    return found


def _one(value: Any) -> str | int | None:
    if isinstance(value, (list, tuple, np.ndarray)):
        if np.size(value) != 1:
            raise ValueError("one class an utterance is expected; a multi_label task has several")
        value = np.asarray(value, dtype=object).reshape(-1)[0]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if value is None or isinstance(value, str):
        text = (value or "").strip()
        return int(text.partition(".")[0]) if _WHOLE.fullmatch(text) else text or None
    if isinstance(value, (bool, np.bool_, int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        if np.isnan(value):
            return None
        if np.isfinite(value) and value == int(value):
            return int(value)
        raise ValueError("a number of a scale, no class")
    raise ValueError("no class")


def _several(value: Any, task: ClassificationTask) -> tuple[str, ...] | np.ndarray | None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    if isinstance(value, str):
        for mark in _MARKS[1:]:
            value = value.replace(mark, _MARKS[0])
        return tuple(name for part in value.split(_MARKS[0]) if (name := part.strip()))
    if not isinstance(value, (list, tuple, np.ndarray)):
        raise ValueError("a list of names is expected, or one number a class")
    parts = list(np.asarray(value, dtype=object).reshape(-1))
    if all(isinstance(part, (str, bytes)) for part in parts):
        names = (part.decode("utf-8", "replace") if isinstance(part, bytes) else part for part in parts)
        return tuple(name.strip() for name in names)
    try:
        numbers = np.asarray([float(part) for part in parts])
    except (TypeError, ValueError):
        raise ValueError("a list of names is expected, or one number a class") from None
    numbers = numbers[task.columns.get(len(numbers), 0) :]
    if not (numbers >= 0).all():  # NaN compares false
        raise ValueError("numbers of classes are 0, or above 0 where the class holds")
    return (numbers > 0).astype(np.float64)


def resolve_labels(corpus: Corpus, task: Task) -> Task:
    """Makes numbers of labels that are classes, in place; labels of a scale stay as they are.

    Args:
        corpus: as read.
        task: whose labels these are.

    Returns:
        The task, with the classes that were found where it named none.

    Raises:
        DataError: labels that are none of its classes, by row; fewer than two classes.
    """
    if not isinstance(task, ClassificationTask):
        return task
    where = corpus.source["name"]
    if any(rows.unimodal for rows in corpus.splits.values()):
        corpus.notes.append("left out: labels of one modality alone, which are numbers of a scale")
    read = [rows for rows in corpus.splits.values() if rows.labels.dtype == object]
    if not task.classes:
        task = replace(task, classes=_found(read, where))
    for split, rows in corpus.splits.items():
        rows.unimodal = {}
        if rows.labels.dtype == object:
            rows.labels = _numbers(rows, task, f"{where}: split {split!r}")
        elif rows.labels.ndim != 1 + task.several or (task.several and rows.labels.shape[1] != task.num_outputs):
            raise DataError(
                f"{where}: split {split!r}: labels of shape {rows.labels.shape}: expected {task.describe()}"
            )
        else:
            check_class_labels(rows.labels, task, f"{where}: split {split!r}")
    return task


def weigh_classes(corpus: Corpus, task: Task) -> Task:
    """The task with the weights of its classes as the training split has them, where they shall be balanced."""
    if not isinstance(task, ClassificationTask) or task.class_weights != BALANCED or "train" not in corpus.splits:
        return task
    labels = corpus.splits["train"].labels
    weights = balanced_weights(class_counts(labels, task), len(labels), task.several)
    return replace(task, class_weights=tuple(float(f"{weight:.6g}") for weight in weights))


def _found(splits: Iterable[Utterances], where: str) -> tuple[str, ...]:
    """Names of the classes that any utterance has, in the order of the alphabet; of indices, all up to the largest."""
    names: dict[str | int, None] = {}
    widths = set()
    for rows in splits:
        for label in rows.labels:
            if isinstance(label, np.ndarray):
                widths.add(len(label))
            else:
                names |= dict.fromkeys(label if isinstance(label, tuple) else (label,))
    if widths and (names.keys() - {()} or len(widths) > 1):
        raise DataError(f"{where}: rows of {', '.join(map(str, sorted(widths)))} numbers, expected one number a class")
    numbers = [int(name) for name in names if str(name).isdecimal()]
    if names and len(numbers) < len(names) and any(isinstance(name, int) for name in names):
        raise DataError(f"{where}: some labels are names of classes and some are numbers: name the classes in a task")
    count = max(widths, default=max(numbers, default=-1) + 1)
    counted = bool(widths) or (bool(names) and len(numbers) == len(names))
    classes = tuple(map(str, range(min(count, MOST_CLASSES + 1)))) if counted else tuple(sorted(map(str, names)))
    if not FEWEST_CLASSES <= len(classes) <= MOST_CLASSES:
        named = ", ".join(classes[:8]) or "none"
        raise DataError(f"{where}: {len(classes)} classes ({named}): expected {FEWEST_CLASSES} to {MOST_CLASSES}")
    return classes


def _numbers(rows: Utterances, task: ClassificationTask, where: str) -> np.ndarray:
    index = {name: k for k, name in enumerate(task.classes)}
    counted = not any(name.isdecimal() for name in task.classes)  # else a number is the name of a class
    wrong = []
    labels = np.zeros((len(rows), len(index)) if task.several else len(rows))
    for row, label in enumerate(rows.labels):
        parts = label if isinstance(label, tuple) else (label,)
        if isinstance(label, np.ndarray):
            if len(label) == len(index):
                labels[row] = label
            else:
                wrong.append(f"{row_name(row, rows.ids)} has {len(label)} numbers for {len(index)} classes")
            continue
        places = [_place(part, index, counted) for part in parts]
        if None in places:
            name = str(parts[places.index(None)])
            wrong.append(f"{row_name(row, rows.ids)} is {_short(name)}{suggest(name, index)}")
        elif task.several:
            labels[row, [place for place in places if place is not None]] = 1
        else:
            labels[row] = places[0]
    if wrong:
        raise DataError(f"{where}, dataset {task.name}: expected {task.describe()}, but {listed(wrong)}")
    return labels


def _place(label: str | int | None, index: dict[str, int], counted: bool) -> int | None:
    """Which class a label is; None: none of them."""
    text = str(label)
    if text in index:
        return index[text]
    number = int(text) if text.isdecimal() and len(text) < 10 else _TRUTH.get(text.lower(), -1)
    return number if counted and 0 <= number < len(index) else None


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
