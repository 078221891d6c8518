"""Utterances as one object each: lines of JSON, or a pickled list of dictionaries.

``{"id": ..., "text": ..., "label": ..., "<modality>": [[...], ...], ...}``, with ``label_T``, ``label_A``, ``label_V``
and ``mode`` (the split) where there are any. A modality may be missing, null, or one vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from deepmlf_llm.data.class_labels import CLASS_KEYS
from deepmlf_llm.data.corpus import UNIMODAL_LABELS, Utterances
from deepmlf_llm.data.mmsa import read_labels
from deepmlf_llm.data.rows import json_rows
from deepmlf_llm.data.source_names import MODALITY_NAMES, TEXT_FEATURES, Reading, split_name
from deepmlf_llm.data.values import entry_types, listed, read_frames, read_numbers, read_texts, row_name
from deepmlf_llm.errors import DataError, suggest
from deepmlf_llm.tasks.classification import ClassificationTask

TEXTS = ("text", "raw_text")
LABELS = ("label", "regression_labels")
SPLIT_KEYS = ("mode", "split")
_OTHERS = {"id", "video_id", "clip_id", "annotation", "annotations", *TEXTS, *LABELS, *CLASS_KEYS, *SPLIT_KEYS}

_NAMING = {"id", "video_id", "clip_id", *TEXTS}

Record = Mapping[str, Any]


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON Lines, read as :func:`~deepmlf_llm.data.rows.json_rows` does.

    Raises:
        DataError: a line that is not a JSON object, by number.
    """
    for row in json_rows(path):
        if row.error is not None:
            raise DataError(f"{path}: line {row.line}: {row.error}")
        yield compact(row.values)


def by_split(records: Sequence[Record], fallback: str, where: str) -> dict[str, list[Record]]:
    """The records of each split, as their ``mode`` says; without one they are all of ``fallback``.

    Raises:
        DataError: a word that is no split, or records without one among others.
    """
    splits: dict[str, list[Record]] = {}
    key = next((key for key in SPLIT_KEYS if any(key in record for record in records)), None)
    for row, record in enumerate(records):
        said = fallback if key is None else record.get(key)
        split = split_name(said)
        if split is None:
            raise DataError(f"{where}: {key} of row {row} is {said!r}, expected train, valid or test")
        splits.setdefault(split, []).append(record)
    return splits


def modality_keys(records: Sequence[Record]) -> list[str]:
    """Keys that hold features in any record, in the order in which they come: lists of numbers, or audio or vision."""
    found: dict[str, None] = {}
    for record in records:
        for key, value in record.items():
            if key in found or key in _OTHERS or key in TEXT_FEATURES or key.startswith("label"):
                continue
            if (key.lower() in MODALITY_NAMES and value is not None) or _holds_numbers(value):
                found[key] = None
    return list(found)


def _holds_numbers(value: Any) -> bool:
    """Whether nested lists begin with a number, or with a null in the place of one."""
    inside = False
    while isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim):
        if not len(value):
            return False
        value, inside = value[0], True
    return inside and (value is None or isinstance(value, (int, float, np.number)))


def compact(record: dict[str, Any]) -> dict[str, Any]:
    """The record with its lists of numbers as arrays, which take a fifth of the memory."""
    for key, value in record.items():
        # Numbers alone: numpy would read the text "1_0" as 10, and true as 1.
        if isinstance(value, list) and key not in _NAMING and entry_types(value) <= {int, float, type(None)}:
            with suppress(ValueError, TypeError, OverflowError):  # what is no table is named when it is read
                record[key] = np.asarray(value, dtype=np.float64)
    return record


def read_records(
    records: Sequence[Record], keys: Mapping[str, str], reading: Reading, where: str, notes: list[str]
) -> Utterances:
    """Reads one split.

    Args:
        records: one an utterance.
        keys: modality -> its key.
        reading: what is asked for.
        where: for messages.
        notes: takes what the user should know.

    Raises:
        DataError: no text or label, or one that is none, by row; frames that are not numbers.
    """
    ids = read_texts([_id(record, row) for row, record in enumerate(records)], len(records), f"{where}: id", "id")
    text = _key(records, TEXTS, ids, where)
    labels = CLASS_KEYS if isinstance(reading.task, ClassificationTask) else LABELS
    label = _key(records, labels, ids, where) if reading.labelled else _present(records, labels) or labels[0]
    unimodal = {}
    for suffix in UNIMODAL_LABELS:
        values = [record.get(f"label_{suffix}") for record in records]
        numbers = read_numbers(values, f"{where}: label_{suffix}", ids)
        if not np.isnan(numbers).all():
            unimodal[suffix] = numbers
    return Utterances(
        ids=ids,
        texts=read_texts([record.get(text) for record in records], len(records), f"{where}: {text}", "transcript", ids),
        labels=read_labels([record.get(label) for record in records], reading, f"{where}: {label}", ids, notes),
        features={
            name: [
                read_frames(record.get(key), f"{where}: {name} of {row_name(row, ids)}")
                for row, record in enumerate(records)
            ]
            for name, key in keys.items()
        },
        unimodal=unimodal,
    )


def _id(record: Record, row: int) -> Any:
    if "id" in record:
        return record["id"]
    if "video_id" in record and "clip_id" in record:
        return f"{record['video_id']}$_${record['clip_id']}"
    return f"row_{row}"


def _present(records: Sequence[Record], names: Sequence[str]) -> str | None:
    return next((name for name in names if any(name in record for record in records)), None)


def _key(records: Sequence[Record], names: Sequence[str], ids: list[str], where: str) -> str:
    """Which of ``names`` every record has."""
    name = _present(records, names)
    if name is None:
        found = list(dict.fromkeys(key for record in records for key in record))
        raise DataError(
            f"{where}: no {names[0]!r}{suggest(names[0], found)}; there are {', '.join(found) or 'no keys'}"
        )
    missing = [row_name(row, ids) for row, record in enumerate(records) if name not in record]
    if missing:
        raise DataError(f"{where}: no {name!r} in {len(missing)} of {len(records)} rows: {listed(missing)}")
    return name
