"""MMSA pickles, the field's exchange format (method.md section 5), and any other modality written the same way.

``{"train" | "valid" | "test": {"id", "raw_text", "regression_labels", "<modality>", "<modality>_lengths", ...}}``
with each modality padded to (N, T, d), or (N, d) for one vector an utterance, or a list of N arrays (t, d).
Optional: ``regression_labels_T/_A/_V``. Other keys (``text_bert``, ``annotations``, ...) are not read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deepmlf_llm.data.corpus import SPLITS, UNIMODAL_LABELS, Corpus, Utterances, choose_modalities
from deepmlf_llm.data.unpickle import load_pickle
from deepmlf_llm.errors import DataError

USUAL_MODALITIES = ("audio", "vision")
REQUIRED = ("id", "raw_text", "regression_labels")


def read_mmsa(path: Path, modalities: Iterable[str] | None = None) -> Corpus:
    """Reads an MMSA pickle; padded frames are cut off by ``<modality>_lengths``.

    A file without lengths for a modality (aligned features) marks padding with all-zero frames: those at either end of
    an utterance are cut off, and a note says so.

    Args:
        path: the pickle.
        modalities: which to read, in this order; default: every one in the file.

    Raises:
        DataError: missing, foreign or damaged file, or one whose parts do not fit together; nothing in it is executed.
    """
    path = Path(path)
    tree = load_pickle(path)
    if not isinstance(tree, dict) or not all(isinstance(tree.get(split), dict) for split in SPLITS):
        found = ", ".join(map(str, tree)) if isinstance(tree, dict) else type(tree).__name__
        raise DataError(f"{path}: no MMSA pickle: expected the splits {', '.join(SPLITS)}, found {found or 'nothing'}")
    for split in SPLITS:
        missing = [key for key in REQUIRED if key not in tree[split]]
        if missing:
            found = ", ".join(map(str, tree[split])) or "nothing"
            raise DataError(f"{path}: split {split!r} lacks {', '.join(missing)}; it has {found}")
    names = choose_modalities(_present(tree["train"]), modalities, f"{path}: split 'train'")
    corpus = Corpus({}, {"kind": "mmsa", "name": path.name, "sha256": file_hash(path)})
    for split in SPLITS:
        corpus.splits[split] = _read_split(tree[split], names, f"{path}: split {split!r}")
    for name in names:
        if f"{name}_lengths" not in tree["train"] and getattr(tree["train"][name], "ndim", 0) == 3:
            corpus.notes.append(f"{name} has no lengths in this file: all-zero frames at either end were cut off")
    return corpus


def file_hash(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _present(split: Mapping[str, Any]) -> list[str]:
    names = [name for name in USUAL_MODALITIES if name in split]
    return names + [
        name
        for name in split
        if isinstance(name, str) and f"{name}_lengths" in split and not name.startswith("text") and name not in names
    ]


def _read_split(split: Mapping[str, Any], names: list[str], where: str) -> Utterances:
    labels = _numbers(split["regression_labels"], f"{where}: regression_labels")
    count = len(labels)
    rows = Utterances(
        ids=_strings(split["id"], count, f"{where}: id"),
        texts=_strings(split["raw_text"], count, f"{where}: raw_text"),
        labels=labels,
        features={},
    )
    for name in names:
        if name not in split:
            raise DataError(f"{where} lacks the modality {name}, which split 'train' has")
        rows.features[name] = _read_modality(split, name, count, where)
    for suffix in UNIMODAL_LABELS:
        key = f"regression_labels_{suffix}"
        if key in split and len(values := _numbers(split[key], f"{where}: {key}")) == count:
            rows.unimodal[suffix] = values
    return rows


def _read_modality(split: Mapping[str, Any], name: str, count: int, where: str) -> list[np.ndarray]:
    values, key = split[name], f"{name}_lengths"
    if not isinstance(values, (list, tuple, np.ndarray)) or (isinstance(values, np.ndarray) and not values.ndim):
        raise DataError(f"{where}: {name} is a {type(values).__name__}, expected an array (rows, frames, dims)")
    padded = isinstance(values, np.ndarray) and values.ndim == 3
    if isinstance(values, np.ndarray) and values.ndim == 2:
        values = values[:, None, :]
    try:
        sequences = [np.asarray(frames) for frames in values]
    except ValueError as error:
        raise DataError(f"{where}: a row of {name} is no array ({error})") from None
    if len(sequences) != count:
        raise DataError(f"{where}: {len(sequences)} rows of {name} for {count} labels")
    for row, frames in enumerate(sequences):
        if frames.ndim != 2 or frames.dtype.kind not in "fiu":
            raise DataError(
                f"{where}: {name} of row {row} is {frames.dtype} of shape {frames.shape}, "
                "expected numbers (frames, dims)"
            )
    if key in split:
        return _cut(sequences, split[key], f"{where}: {key}")
    return [_without_zero_ends(frames) for frames in sequences] if padded else sequences


def _cut(sequences: list[np.ndarray], lengths: Any, where: str) -> list[np.ndarray]:
    numbers = _numbers(lengths, where)
    if len(numbers) != len(sequences):
        raise DataError(f"{where}: {len(numbers)} lengths for {len(sequences)} rows")
    for row, (length, frames) in enumerate(zip(numbers, sequences, strict=True)):
        if not 0 <= length <= len(frames) or length != int(length):
            raise DataError(f"{where}: row {row} has length {length:g}, but its array has {len(frames)} frames")
    return [frames[: int(length)] for length, frames in zip(numbers, sequences, strict=True)]


def _without_zero_ends(frames: np.ndarray) -> np.ndarray:
    real = np.flatnonzero((frames != 0).any(axis=1))
    return frames[real[0] : real[-1] + 1] if len(real) else frames[:0]


def _numbers(values: Any, where: str) -> np.ndarray:
    """float64 [N], from a list or an array (N,) or (N, 1)."""
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{where}: expected one number a row") from None
    if numbers.ndim == 2 and numbers.shape[1] == 1:
        numbers = numbers[:, 0]
    if numbers.ndim != 1:
        raise DataError(f"{where}: expected one number a row, found shape {numbers.shape}")
    return numbers


def _strings(values: Any, count: int, where: str) -> list[str]:
    if not isinstance(values, (list, tuple, np.ndarray)) or len(values) != count:
        raise DataError(f"{where}: expected {count} strings, one for each label")
    return [_string(value, where) for value in values]


def _string(value: Any, where: str) -> str:
    try:
        if isinstance(value, bytes):
            return value.decode("utf-8")
        if isinstance(value, (str, int, np.integer)) and not isinstance(value, bool):
            text = str(value)
            text.encode("utf-8")  # a lone surrogate would fail much later, when written
            return text
    except (UnicodeError, ValueError):
        raise DataError(f"{where}: {value!a} is no valid text") from None
    raise DataError(f"{where}: expected strings, found {type(value).__name__}")
