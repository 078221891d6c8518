"""Folders of ``.npy`` files beside a ``label.csv``, as MMSA's feature extractor writes them.

::

    DIR/label.csv                                 video_id, clip_id, text, label, mode [, label_T, label_A, label_V]
    DIR/<modality>/<video_id>$_$<clip_id>.npy     or <video_id>_<clip_id>.npy, or <video_id>/<clip_id>.npy: real frames
                                                  (t, d), or one vector (d,); or .npz with one such array

``mode`` is train, valid or test. A clip without a file, or with a file of no frames, has no such modality: it is kept,
and counted as absent.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from deepmlf_llm.data.class_labels import read_classes
from deepmlf_llm.data.corpus import SPLITS, UNIMODAL_LABELS, Corpus, Utterances
from deepmlf_llm.data.file_kind import CSV, NPY, NPZ, TEXT, UNKNOWN, file_kind
from deepmlf_llm.data.label_table import LabelTable, read_label_table
from deepmlf_llm.data.source_names import MODALITY_NAMES, TEXT_FEATURES, Reading
from deepmlf_llm.data.values import read_frames
from deepmlf_llm.errors import DataError
from deepmlf_llm.tasks.classification import ClassificationTask

TABLE = "label.csv"
ARRAYS = (".npy", ".npz")
_MOST_EXPANDED = 2000
"""Bytes that one byte of a zip can become; beyond that the file says what is not in it."""


def read_npy_folder(directory: Path, reading: Reading) -> Corpus:
    """Reads a folder of clips.

    Args:
        directory: holds ``label.csv`` and one folder a modality.
        reading: what is asked for; default: every folder that holds ``.npy`` or ``.npz`` files.

    Raises:
        DataError: a table or rows of it that are wrong, a file that is not a plain array, dimensions that differ, or a
            modality none of whose files belongs to a row.
    """
    table_path = directory / TABLE
    if not os.path.lexists(table_path):
        raise DataError(f"{directory}: no {TABLE} in this folder")
    kind = file_kind(table_path)
    if kind.name not in (CSV, TEXT, UNKNOWN):
        raise kind.refuse(table_path)
    content = table_path.read_bytes()
    digest = hashlib.sha256(content)
    is_number = not isinstance(reading.task, ClassificationTask)
    table = read_label_table(content, table_path, reading.labelled, is_number)
    folders = {entry.name: entry for entry in sorted(directory.iterdir()) if entry.is_dir()}
    present = [name for name, folder in folders.items() if next(_arrays(folder), None)]
    notes = table.notes + _without_files(directory, present)
    texts = [name for name in present if name in TEXT_FEATURES and name not in (reading.modalities or ())]
    if texts:
        notes.append(f"left out: {', '.join(texts)} (text features are not needed)")
    present = [name for name in present if name not in texts]
    if not present and reading.modalities != ():
        raise DataError(f"{directory}: no modality found: no folder with .npy files{_what_there_is(folders)}")
    features = {}
    for name, key in reading.keys(present, str(directory), notes).items():
        features[name] = _read_modality(folders[key], table, digest, notes)
    splits = {
        split: table_split(table, features, split, reading, table_path) for split in SPLITS if split in table.splits
    }
    source = {"kind": "npy_folder", "name": directory.resolve().name, "sha256": digest.hexdigest()}
    return Corpus(splits, source, notes)


def _without_files(directory: Path, present: list[str]) -> list[str]:
    """A sentence for each folder, or link to one, that is called like a modality and has nothing to read."""
    names = [entry.name for entry in sorted(directory.iterdir()) if entry.is_dir() or entry.is_symlink()]
    empty = [name for name in names if name.lower() in MODALITY_NAMES and name not in present]
    return [f"{name} is left out: there is no .npy or .npz file in it" for name in empty]


def _what_there_is(folders: dict[str, Path]) -> str:
    found = [
        f"{name}/ holds {', '.join(suffixes)}"
        for name, folder in folders.items()
        if (suffixes := sorted({entry.suffix for entry in folder.rglob("*") if entry.suffix and entry.is_file()}))
    ]
    return f"; {'; '.join(found)}: features have to be extracted from these first" if found else ""


def _arrays(folder: Path) -> Iterator[Path]:
    """Array files of a modality, of its folder and of one folder a video; links are followed."""
    for entry in sorted(folder.iterdir()):
        if _is_array(entry):
            yield entry
        elif entry.is_dir():
            yield from filter(_is_array, sorted(entry.iterdir()))


def _is_array(path: Path) -> bool:
    return path.suffix.lower() in ARRAYS and not path.name.startswith(".")


def _read_modality(folder: Path, table: LabelTable, digest: Any, notes: list[str]) -> list[np.ndarray]:
    """One array (t, d) for each row, (0, d) where there is no file."""
    files: dict[str, Path] = {}
    for path in _arrays(folder):
        key = path.relative_to(folder).with_suffix("").as_posix()
        if key in files:
            raise DataError(f"{folder}: both {files[key].name} and {path.name} are there; remove one")
        files[key] = path
    used: dict[Path, int] = {}
    found: list[np.ndarray | None] = []
    for row, line in zip(table.rows, table.lines, strict=True):
        file = _find(files, row["video_id"], row["clip_id"], folder)
        if file is None:
            found.append(None)
            continue
        if file in used:
            raise DataError(f"{file}: would belong to row {used[file]} and to row {line} of {TABLE}; name it with $_$")
        used[file] = line
        found.append(_read_array(file, folder, digest))
    if not used:
        example = next(iter(files.values())).relative_to(folder)
        raise DataError(
            f"{folder}: no file belongs to a row of {TABLE}; expected <video_id>$_$<clip_id>.npy or "
            f"<video_id>_<clip_id>.npy, found such as {example}"
        )
    _note_files(folder, list(files.values()), len(files) - len(used), notes)
    shapes = {array.shape[1] for array in found if array is not None and array.shape[1]}
    if len(shapes) > 1:
        raise DataError(f"{folder}: files differ in dimension: {', '.join(map(str, sorted(shapes)))}")
    empty = np.empty((0, max(shapes, default=0)), dtype=np.float32)
    return [empty if array is None or not len(array) else array for array in found]


def _find(files: dict[str, Path], video: str, clip: str, folder: Path) -> Path | None:
    names = [f"{video}$_${clip}", f"{video}_{clip}"]
    keys = [*names, f"{video}/{clip}", *(f"{video}/{name}" for name in names)]
    there = [files[key] for key in keys if key in files]
    if len(there) > 1:
        shown = ", ".join(str(path.relative_to(folder)) for path in there)
        raise DataError(f"{folder}: clip {clip!r} of video {video!r} has several files: {shown}; keep one")
    return there[0] if there else None


def _note_files(folder: Path, files: list[Path], orphans: int, notes: list[str]) -> None:
    if orphans:
        notes.append(f"{orphans} files of {folder.name} belong to no row of {TABLE}")
    root = os.path.realpath(folder.parent)  # resolve() fails at links in a circle
    outside = [path for path in files if not Path(os.path.realpath(path)).is_relative_to(root)]
    if outside:
        notes.append(
            f"{len(outside)} files of {folder.name} are links to files outside of the folder (such as "
            f"{outside[0].relative_to(folder)})"
        )


def _read_array(path: Path, folder: Path, digest: Any) -> np.ndarray:
    if not path.is_file():
        other = "a link to what is not there" if path.is_symlink() else "not an ordinary file"
        raise DataError(f"{path}: is {other}")
    kind = file_kind(path)
    if kind.name not in (NPY, NPZ):
        raise DataError(f"{path}: no plain numpy array: is {kind.what}")
    content = path.read_bytes()
    digest.update(f"{folder.name}/{path.relative_to(folder)}".encode("utf-8", "surrogateescape"))
    digest.update(content)
    try:
        array = _from_zip(content) if kind.name == NPZ else np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # a damaged header can fail in any way
        reason = f"{type(error).__name__}: {error}"[:200]
        if "allow_pickle" in reason:
            reason = "an object array, which is a pickle: save the numbers, np.save(path, x.astype(np.float32))"
        raise DataError(f"{path}: no plain numpy array ({reason})") from None
    return read_frames(array, f"{path}:")


def _from_zip(content: bytes) -> np.ndarray:
    """The one array of an .npz file."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        if len(members) != 1:
            names = ", ".join(member.filename.removesuffix(".npy") for member in members) or "none"
            raise ValueError(f"expected one array, found {names}")
        if members[0].file_size > _MOST_EXPANDED * len(content):
            raise ValueError(f"{members[0].file_size} bytes out of {len(content)}")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return arrays[arrays.files[0]]


def table_split(
    table: LabelTable, features: dict[str, list[np.ndarray]], split: str, reading: Reading, path: Path
) -> Utterances:
    """The rows of one split with their features; ``path``: of the table, for messages."""
    chosen = [index for index, of in enumerate(table.splits) if of == split]
    rows = [table.rows[index] for index in chosen]
    numbers = {column: np.array(values)[chosen] for column, values in table.numbers.items()}
    ids = [f"{row['video_id']}$_${row['clip_id']}" for row in rows]
    if isinstance(reading.task, ClassificationTask):
        cells = [row.get("label") for row in rows]
        labels = read_classes(cells, reading.task, f"{path}: column label", ids, reading.labelled)
    else:
        labels = numbers["label"]
    return Utterances(
        ids=ids,
        texts=[row["text"] for row in rows],
        labels=labels,
        features={name: [sequences[index] for index in chosen] for name, sequences in features.items()},
        unimodal={
            suffix: numbers[f"label_{suffix}"]
            for suffix in UNIMODAL_LABELS
            if f"label_{suffix}" in numbers and not np.isnan(numbers[f"label_{suffix}"]).all()
        },
    )
