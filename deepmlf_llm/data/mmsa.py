"""A split as MMSA writes it, the field's exchange format (method.md section 5): one column for each thing.

``{"id", "raw_text", "regression_labels", "<modality>", "<modality>_lengths", ...}`` with each modality padded to
(N, T, d), or (N, d) for one vector an utterance, or a list of N arrays (t, d). Optional: ``regression_labels_T/_A/_V``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from deepmlf_llm.data.class_labels import CLASS_LABELS, read_classes
from deepmlf_llm.data.corpus import UNIMODAL_LABELS, Utterances
from deepmlf_llm.data.source_names import MODALITY_NAMES, TEXT_FEATURES, Reading
from deepmlf_llm.data.values import is_column, read_frames, read_numbers, read_texts, row_name
from deepmlf_llm.errors import DataError, suggest
from deepmlf_llm.tasks.classification import ClassificationTask
from deepmlf_llm.tasks.registry import REGRESSION

LABELS = "regression_labels"
_NAMES = {"id": ("id",), "raw_text": ("raw_text", "text", "transcript"), LABELS: (LABELS, "labels", "label")}
"""Required columns: their usual name, and those under which they are read as well, if these hold what is expected."""


def _names(reading: Reading) -> dict[str, tuple[str, ...]]:
    return {**_NAMES, LABELS: CLASS_LABELS} if isinstance(reading.task, ClassificationTask) else _NAMES


def modality_columns(split: Mapping[str, Any], wanted: tuple[str, ...] = ()) -> list[str]:
    """The columns that hold features: audio and vision under any usual name, what has lengths, and what is wanted."""
    return sorted(
        (
            name
            for name in split
            if isinstance(name, str)
            and not name.endswith("_lengths")
            and name not in TEXT_FEATURES
            and (name.lower() in MODALITY_NAMES or f"{name}_lengths" in split or name in wanted)
        ),
        key=lambda name: name not in ("audio", "vision"),  # stable: the rest in the order of the file
    )


def left_out(split: Mapping[str, Any]) -> list[str]:
    """Columns that look like features [N x T x d] and are read by nobody."""
    known = [*modality_columns(split), *(name for names in _NAMES.values() for name in names)]
    return [
        str(name)
        for name, value in split.items()
        if name not in known and (name in TEXT_FEATURES or getattr(value, "ndim", 0) == 3) and np.size(value) > 0
    ]


def read_columns(
    split: Mapping[str, Any], keys: Mapping[str, str], reading: Reading, where: str, notes: list[str]
) -> Utterances:
    """Reads one split; padded frames are cut off by ``<modality>_lengths``.

    A split without lengths for a modality (aligned features) marks padding with all-zero frames: those at either end of
    an utterance are cut off, and a note says so.

    Args:
        split: the columns.
        keys: modality -> its column.
        reading: what is asked for.
        where: for messages.
        notes: takes what the user should know.

    Raises:
        DataError: a column is missing, or does not fit the others.
    """
    found = _required(split, reading, where, notes)
    if not is_column(split["id"]):
        raise DataError(f"{where}: id is a {type(split['id']).__name__}, expected one id a row")
    values = split[found[LABELS]] if LABELS in found else [None] * len(split["id"])
    count = len(values) if is_column(values) else 0
    lengths = {key: len(split[key]) for key in ("id", *found.values()) if is_column(split[key])}
    if len(set(lengths.values())) > 1:
        rows_of = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise DataError(f"{where}: columns differ in their number of rows: {rows_of}")
    ids = read_texts(split["id"], count, f"{where}: id", "id") if count else None
    labels = read_labels(values, reading, f"{where}: {found.get(LABELS, LABELS)}", ids, notes)
    rows = Utterances(
        ids=ids or [],
        texts=read_texts(split[found["raw_text"]], count, f"{where}: raw_text", "transcript", ids),
        labels=labels,
        features={},
    )
    for name, key in keys.items():
        if key not in split:
            raise DataError(f"{where} lacks the modality {key}, which another split has")
        rows.features[name] = _read_modality(split, key, rows.ids, where, notes)
    for suffix in UNIMODAL_LABELS:
        key = f"{LABELS}_{suffix}"
        if key in split and (unimodal := _unimodal(split[key], count, f"{where}: {key}", ids)) is not None:
            rows.unimodal[suffix] = unimodal
    return rows


def _required(split: Mapping[str, Any], reading: Reading, where: str, notes: list[str]) -> dict[str, str]:
    """Required columns -> the columns that hold them.

    Raises:
        DataError: one is not there.
    """
    found = {}
    names = _names(reading)
    for name, (usual, *others) in names.items():
        key = next(
            (key for key in (usual, *others) if key in split and (key == usual or _fits(name, split[key], reading))),
            None,
        )
        if key is not None:
            found[name] = key
            note = f"{key!r} was read as {usual}"
            notes += [note] if key != usual and note not in notes else []
    missing = [names[name][0] for name in names if name not in found and (name != LABELS or reading.labelled)]
    if missing:
        columns = [str(key) for key in split]
        hint = "".join(suggest(name, [key for key in columns if key not in TEXT_FEATURES]) for name in missing)
        if "raw_text" in missing and any(key in split for key in TEXT_FEATURES):
            hint += "; a language model reads transcripts, not text features"
        if reading.labelled and LABELS not in found:
            hint += f"; the labels of {reading.task.name!r} are {reading.task.describe()}"
        raise DataError(f"{where} lacks {', '.join(missing)}; it has {', '.join(columns) or 'nothing'}{hint}")
    return found


def _fits(name: str, values: Any, reading: Reading) -> bool:
    """Whether a column that another name holds can be what is looked for: strings, or one number a row."""
    if not is_column(values) or not len(values):
        return False
    if name == LABELS and isinstance(reading.task, ClassificationTask):
        return True
    return isinstance(values[0], (str, bytes)) if name == "raw_text" else np.size(values[0]) == 1


def read_labels(
    values: Any, reading: Reading, where: str, ids: list[str] | None = None, notes: list[str] | None = None
) -> np.ndarray:
    """Polarity [N]; where the data set has rows of several labels, the first. Of classes what the file has of them, see
    :func:`~deepmlf_llm.data.class_labels.read_classes`.

    Raises:
        DataError: no number a row, no class, or the rows of another data set.
    """
    if isinstance(reading.task, ClassificationTask):
        return read_classes(values, reading.task, where, ids, reading.labelled)
    rows = values.reshape(len(values), -1) if isinstance(values, np.ndarray) and values.ndim and values.size else None
    width = 1 if rows is None else rows.shape[1]
    for name, task in REGRESSION.items():
        if rows is None or width not in task.label_rows:
            continue
        layout = task.label_rows[width]
        if reading.task.name != name:
            raise DataError(
                f"{where}: expected one number a row, found {width}, which is how {layout} are written: prepare it as "
                f"dataset {name}, or keep the column of the sentiment"
            )
        note = f"{width} labels a row ({layout}): the first was read"
        if notes is not None and note not in notes:
            notes.append(note)
        values = rows[:, 0]
    try:
        return read_numbers(values, where, ids)
    except DataError as error:
        if is_column(values) and any(isinstance(value, str) and _is_name(value) for value in values):
            rule = f"{reading.task.name!r} has {reading.task.describe()}"
            raise DataError(f"{error}; {rule}: names of classes are labels of another task") from None
        raise


def _is_name(value: str) -> bool:
    return value.strip()[:1].isalpha()


def _unimodal(values: Any, count: int, where: str, ids: list[str] | None) -> np.ndarray | None:
    """One modality's own labels, None where the file has an empty column for them, as some do."""
    if values is None or (isinstance(values, (str, list, tuple)) and not values) or not np.size(values):
        return None
    numbers = read_numbers(values, where, ids)
    if len(numbers) != count:
        raise DataError(f"{where}: {len(numbers)} labels for {count} utterances; remove this column, or give one a row")
    return None if np.isnan(numbers).all() else numbers


def _read_modality(
    split: Mapping[str, Any], name: str, ids: list[str], where: str, notes: list[str]
) -> list[np.ndarray]:
    values, key = split[name], f"{name}_lengths"
    if not is_column(values):
        raise DataError(f"{where}: {name} is a {type(values).__name__}, expected an array (rows, frames, dims)")
    if len(values) != len(ids):
        raise DataError(f"{where}: {len(values)} rows of {name} for {len(ids)} labels")
    sequences = [read_frames(frames, f"{where}: {name} of {row_name(row, ids)}") for row, frames in enumerate(values)]
    if key in split:
        return _cut(sequences, split[key], f"{where}: {key}", ids)
    if not _padded(values, sequences):
        return sequences
    note = f"{name} has no lengths in this file: all-zero frames at either end were cut off"
    if note not in notes:
        notes.append(note)
    return [_without_zero_ends(frames) for frames in sequences]


def _padded(values: Any, sequences: list[np.ndarray]) -> bool:
    """Whether utterances were padded to one length: an array [N x T x d], or the lists that ``tolist`` makes of one."""
    if isinstance(values, np.ndarray) and values.ndim == 3:
        return True
    lengths = {len(frames) for frames in sequences}
    nested = isinstance(values, (list, tuple)) and all(isinstance(frames, (list, tuple)) for frames in values)
    return nested and len(values) > 1 and len(lengths) == 1 and lengths != {1}


def _cut(sequences: list[np.ndarray], lengths: Any, where: str, ids: list[str]) -> list[np.ndarray]:
    numbers = read_numbers(lengths, where, ids)
    if len(numbers) != len(sequences):
        raise DataError(f"{where}: {len(numbers)} lengths for {len(sequences)} rows")
    for row, (length, frames) in enumerate(zip(numbers, sequences, strict=True)):
        if not 0 <= length <= len(frames) or length != int(length):
            raise DataError(
                f"{where}: {row_name(row, ids)} has length {length:g}, but its array has {len(frames)} frames"
            )
    return [frames[: int(length)] for length, frames in zip(numbers, sequences, strict=True)]


def _without_zero_ends(frames: np.ndarray) -> np.ndarray:
    real = np.flatnonzero((frames != 0).any(axis=1))
    return frames[real[0] : real[-1] + 1] if len(real) else frames[:0]
