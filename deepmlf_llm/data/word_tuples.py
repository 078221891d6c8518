"""A split as a list of ``((words, visual, acoustic), label, id)``, as MAG-BERT and others exchange CMU-MOSI.

Words are aligned with the frames, one each. Some files add the words as strings: ``(indices, visual, acoustic,
words)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deepmlf_llm.data.corpus import Utterances
from deepmlf_llm.data.mmsa import read_labels
from deepmlf_llm.data.source_names import Reading
from deepmlf_llm.data.values import is_column, listed, read_frames, read_text, row_name
from deepmlf_llm.errors import DataError
from deepmlf_llm.tasks.classification import ClassificationTask

PLACES = {"vision": 1, "audio": 2}
PAUSES = {"sp", "SP", "<sp>"}
"""What forced alignment writes for a pause."""


def are_word_tuples(rows: Sequence[Any]) -> bool:
    """Whether the first row looks like one of these."""
    first = rows[0] if len(rows) else None
    return (
        isinstance(first, (tuple, list))
        and len(first) in (2, 3)
        and isinstance(first[0], (tuple, list))
        and len(first[0]) in (3, 4)
    )


def read_word_tuples(
    rows: Sequence[Any], keys: Mapping[str, str], reading: Reading, where: str, notes: list[str]
) -> Utterances:
    """Reads one split.

    Args:
        rows: the tuples.
        keys: modality -> "vision" or "audio", the parts of the tuple.
        reading: what is asked for.
        where: for messages.
        notes: takes what the user should know.

    Raises:
        DataError: a row of another form, words that are indices, labels that are not numbers.
    """
    for row, item in enumerate(rows):
        if not are_word_tuples([item]) or len(item) != len(rows[0]) or len(item[0]) != len(rows[0][0]):
            raise DataError(f"{where}: row {row} is no ((words, visual, acoustic), label, id) as row 0 is")
    ids = [_id(item, row, where) for row, item in enumerate(rows)]
    if isinstance(reading.task, ClassificationTask):
        labels: Any = [item[1] for item in rows]
    else:
        labels = _label_rows(rows, where)
    return Utterances(
        ids=ids,
        texts=_texts(rows, ids, where),
        labels=read_labels(labels, reading, f"{where}: labels", ids, notes),
        features={
            name: [
                read_frames(item[0][PLACES[key]], f"{where}: {name} of {row_name(row, ids)}")
                for row, item in enumerate(rows)
            ]
            for name, key in keys.items()
        },
    )


def _label_rows(rows: Sequence[Any], where: str) -> Any:
    """Labels as they stand there: a list of one a row, or where there are several an array [N x w]."""
    labels = [_flat(item[1]) for item in rows]
    widths = {len(label) for label in labels}
    if len(widths) > 1 or 0 in widths:
        raise DataError(f"{where}: rows have {', '.join(map(str, sorted(widths)))} labels, expected one a row")
    if widths == {1}:
        return [label[0] for label in labels]
    try:
        return np.array(labels)
    except ValueError:
        raise DataError(f"{where}: labels are lists in lists of different length, expected one number a row") from None


def _flat(label: Any) -> list[Any]:
    """The numbers of a row of labels, out of whatever nests them."""
    if isinstance(label, np.ndarray):
        return label.reshape(-1).tolist()
    if isinstance(label, (list, tuple)):
        return [value for part in label for value in (_flat(part) if is_column(part) else [part])]
    return [label]


def _id(item: Sequence[Any], row: int, where: str) -> str:
    if len(item) < 3:
        return f"row_{row}"
    value = item[2].reshape(-1)[0] if isinstance(item[2], np.ndarray) and item[2].size == 1 else item[2]
    try:
        return read_text(value)
    except ValueError as error:
        raise DataError(f"{where}: the id of row {row} {error}, expected a string") from None


def _texts(rows: Sequence[Any], ids: list[str], where: str) -> list[str]:
    texts, wrong = [], []
    for row, item in enumerate(rows):
        words = item[0][3] if len(item[0]) == 4 else item[0][0]
        words = words.reshape(-1).tolist() if isinstance(words, np.ndarray) else words
        words = words.split() if isinstance(words, str) else words
        if not isinstance(words, (list, tuple)) or not all(isinstance(word, (str, bytes)) for word in words):
            wrong.append(row_name(row, ids))
            continue
        try:
            texts.append(" ".join(word for word in map(read_text, words) if word not in PAUSES))
        except ValueError as error:
            raise DataError(f"{where}: words of {row_name(row, ids)}: {error}") from None
    if wrong:
        raise DataError(
            f"{where}: words are not strings in {listed(wrong)}: indices say nothing to a language model; "
            "write the words themselves"
        )
    return texts
