"""Folders of ``.npy`` files beside a ``label.csv``, as MMSA's feature extractor writes them.

::

    DIR/label.csv                                 video_id, clip_id, text, label, mode [, label_T, label_A, label_V]
    DIR/<modality>/<video_id>$_$<clip_id>.npy     or <video_id>_<clip_id>.npy: real frames (t, d), or one vector (d,)

``mode`` is train, valid or test. A clip without a file, or with a file of no frames, has no such modality: it is kept,
and counted as absent.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from deepmlf_llm.data.corpus import SPLITS, UNIMODAL_LABELS, Corpus, Utterances, choose_modalities
from deepmlf_llm.errors import DataError, suggest

COLUMNS = ("video_id", "clip_id", "text", "label", "mode")


def read_npy_folder(directory: Path, modalities: Iterable[str] | None = None) -> Corpus:
    """Reads a folder of clips.

    Args:
        directory: holds ``label.csv`` and one folder a modality.
        modalities: which folders to read, in this order; default: all that hold ``.npy`` files.

    Raises:
        DataError: no ``label.csv``, columns or splits missing, a file that is no plain array, dimensions that differ,
            or a modality none of whose files belongs to a row.
    """
    directory = Path(directory)
    table = directory / "label.csv"
    if not table.is_file():
        raise DataError(f"{directory}: no label.csv in this folder")
    content = table.read_bytes()
    digest = hashlib.sha256(content)
    rows = _read_table(content, table)
    present = sorted(folder.name for folder in directory.iterdir() if folder.is_dir() and any(folder.glob("*.npy")))
    names = choose_modalities(present, modalities, str(directory))

    notes: list[str] = []
    features = {}
    for name in names:
        features[name], orphans = _read_modality(directory / name, rows, digest)
        if orphans:
            notes.append(f"{orphans} files of {name} belong to no row of label.csv")
    splits = {split: _split(rows, features, split, table) for split in SPLITS}
    source = {"kind": "npy_folder", "name": directory.resolve().name, "sha256": digest.hexdigest()}
    return Corpus(splits, source, notes)


def _read_table(content: bytes, table: Path) -> list[dict[str, str]]:
    try:
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), restval="")
        rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: no CSV table in UTF-8 ({error})") from None
    columns = reader.fieldnames or []
    missing = [column for column in COLUMNS if column not in columns]
    if missing:
        hints = "".join(suggest(column, columns) for column in missing)
        raise DataError(f"{table}: lacks the columns {', '.join(missing)}{hints}; it has {', '.join(columns)}")
    seen: set[tuple[str, str]] = set()
    for line, row in enumerate(rows, start=2):
        if row["mode"] not in SPLITS:
            raise DataError(f"{table}: row {line} has mode {row['mode']!r}, expected one of {', '.join(SPLITS)}")
        clip = (row["video_id"], row["clip_id"])
        if clip in seen:
            raise DataError(f"{table}: row {line} repeats clip {clip[1]!r} of video {clip[0]!r}")
        seen.add(clip)
    return rows


def _read_modality(folder: Path, rows: list[dict[str, str]], digest: Any) -> tuple[list[np.ndarray], int]:
    """One array (t, d) for each row, (0, d) where there is no file; and the number of files that no row names."""
    files = {path.stem: path for path in folder.glob("*.npy")}
    found: list[np.ndarray | None] = []
    for row in rows:
        path = files.pop(f"{row['video_id']}$_${row['clip_id']}", None)
        path = path or files.pop(f"{row['video_id']}_{row['clip_id']}", None)
        found.append(_read_array(path, digest) if path else None)
    shapes = {array.shape[1] for array in found if array is not None}
    if not shapes:
        example = next(iter(files))
        raise DataError(
            f"{folder}: no file belongs to a row of label.csv; expected <video_id>$_$<clip_id>.npy or "
            f"<video_id>_<clip_id>.npy, found such as {example}.npy"
        )
    if len(shapes) > 1:
        raise DataError(f"{folder}: files differ in dimension: {', '.join(map(str, sorted(shapes)))}")
    empty = np.empty((0, shapes.pop()), dtype=np.float32)
    return [empty if array is None else array for array in found], len(files)


def _read_array(path: Path, digest: Any) -> np.ndarray:
    content = path.read_bytes()
    digest.update(f"{path.parent.name}/{path.name}".encode("utf-8", "surrogateescape"))
    digest.update(content)
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # a damaged header can fail in any way
        raise DataError(f"{path}: no plain numpy array ({type(error).__name__}: {error})") from None
    if not isinstance(array, np.ndarray) or array.ndim not in (1, 2) or array.dtype.kind not in "fiu":
        raise DataError(f"{path}: expected an array of numbers (frames, dims) or (dims,)")
    return array[None] if array.ndim == 1 else array


def _split(rows: list[dict[str, str]], features: dict[str, list[np.ndarray]], split: str, table: Path) -> Utterances:
    chosen = [index for index, row in enumerate(rows) if row["mode"] == split]
    return Utterances(
        ids=[f"{rows[index]['video_id']}$_${rows[index]['clip_id']}" for index in chosen],
        texts=[rows[index]["text"] for index in chosen],
        labels=_column(rows, chosen, "label", table),
        features={name: [sequences[index] for index in chosen] for name, sequences in features.items()},
        unimodal={
            suffix: values
            for suffix in UNIMODAL_LABELS
            if not np.isnan(values := _column(rows, chosen, f"label_{suffix}", table)).all()
        },
    )


def _column(rows: list[dict[str, str]], chosen: list[int], column: str, table: Path) -> np.ndarray:
    """A column of numbers; an empty cell is NaN."""
    try:
        return np.array([float(rows[index].get(column) or math.nan) for index in chosen])
    except ValueError as error:
        raise DataError(f"{table}: column {column} holds what is no number ({error})") from None
