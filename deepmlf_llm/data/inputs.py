"""What predictions are made of: a file or folder of utterances, read row by row.

========================  ====================================================================================
``.jsonl``, ``.parquet``  one utterance a row, raw features; see :mod:`deepmlf_llm.data.rows`
prepared data             a directory with ``manifest.json``; its standardisation is changed to the model's
any other source          what :mod:`deepmlf_llm.data.sources` reads, with or without labels
a single clip             as MMSA-FET writes it, see :mod:`deepmlf_llm.data.single_clip`
========================  ====================================================================================
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepmlf_llm.data.columns import ColumnError, Columns
from deepmlf_llm.data.corpus import Corpus, check_recipe
from deepmlf_llm.data.file_kind import PICKLE, file_kind
from deepmlf_llm.data.labelled import check_prepared, unread_features
from deepmlf_llm.data.manifest import FILE_NAME
from deepmlf_llm.data.names import did_you_mean
from deepmlf_llm.data.restandardise import standardisation_changes
from deepmlf_llm.data.rows import SUFFIXES, Row, check_row_file, read_rows
from deepmlf_llm.data.single_clip import is_single_clip, read_single_clip
from deepmlf_llm.data.sources import open_source
from deepmlf_llm.data.store import DataStore, open_store
from deepmlf_llm.data.unpickle import load_pickle
from deepmlf_llm.errors import DataError, suggest
from deepmlf_llm.files import sha256
from deepmlf_llm.tasks.registry import task_of

_CLIP_BYTES = 1 << 28  # a larger file is not a single clip


@dataclass(frozen=True)
class Input:
    """Utterances, one after the other, as often as they are asked for.

    Attributes:
        path: of the file or folder.
        rows: gives an iterator over them.
        identity: gives a hash of their content.
        prepared: features are standardised as the model's training data were; False: raw.
        notes: what the user should know, one sentence each.
    """

    path: Path
    rows: Callable[[], Iterator[Row]]
    identity: Callable[[], str]
    prepared: bool = False
    notes: list[str] = field(default_factory=list)


def open_input(path: Path, columns: Columns, trained: Any, split: str | None = None, text: str | None = None) -> Input:
    """Opens what predictions are made of; its first rows are looked at.

    Args:
        path: of the file or folder.
        columns: which keys of a row are read.
        trained: settings of the model (``modalities``, ``dataset``, ``task``, ``text``).
        split: of a source that has splits; default: all of them, one after the other.
        text: transcript of a single clip.

    Raises:
        DataError: nothing there, of another kind, without rows, or with features under names that are not known.
    """
    if not path.exists():
        raise DataError(f"--input {path}: no such file or folder")
    if path.is_dir() and (path / FILE_NAME).is_file():
        return _prepared(path, open_store(path), trained, split)
    if path.is_file() and path.suffix in SUFFIXES:
        return _row_file(path, columns, split)
    renamed = {old: new for old, new in columns.rename.items() if new in columns.modalities}
    if path.is_file() and _is_clip(path):
        clip = read_single_clip(path, text, renamed)
        return _of_values(path, [clip], columns, sha256(path), [])
    # A model that reads text alone needs no features in a source.
    read: list[str] | None = None if columns.modalities else []
    task = task_of(trained.dataset, trained.task)
    corpus = open_source(path, task, modalities=read, rename=renamed, labelled=False)
    check_recipe(corpus, trained.modalities)
    chosen = list(corpus.splits) if split is None else [split]
    if split is not None and split not in corpus.splits:
        known = ", ".join(corpus.splits)
        raise DataError(f"{path}: no split {split!r}{suggest(split, corpus.splits)}; it has {known}")
    identity = hashlib.sha256(json.dumps([corpus.source["sha256"], chosen]).encode()).hexdigest()
    return _of_values(path, _values(corpus, chosen), columns, identity, corpus.notes)


def _row_file(path: Path, columns: Columns, split: str | None) -> Input:
    if split is not None:
        raise DataError(
            f"--split {split}: {path.name} has no splits: each of its rows is predicted, whatever its 'mode'; leave "
            "--split out, or give a file of the rows that you want"
        )
    first = check_row_file(path)
    if path.suffix != ".parquet" and all(row.error is not None for row in first) and not _begins_as_object(path):
        raise file_kind(path).refuse(path)
    _check_names(path, first, columns)
    return Input(path, lambda: read_rows(path), lambda: sha256(path))


def _begins_as_object(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(512).lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n\0").startswith(b"{")


def _check_names(path: Path, first: list[Row], columns: Columns) -> None:
    """Raises DataError where all of the first rows use another name for something that the model reads."""
    errors = []
    for row in first:
        if row.error is None:
            try:
                columns.read(row.values)
                return
            except ColumnError as error:
                errors.append(f"{row.place}: {error}")
            except DataError:
                return
    if errors:
        raise DataError(f"{path}: {errors[0]}")


def _is_clip(path: Path) -> bool:
    if path.stat().st_size > _CLIP_BYTES or file_kind(path).name != PICKLE:
        return False
    return is_single_clip(load_pickle(path))


def _values(corpus: Corpus, splits: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "id": rows.ids[i],
            "text": rows.texts[i],
            **{name: frames[i] if len(frames[i]) else None for name, frames in rows.features.items()},
        }
        for rows in (corpus.splits[split] for split in splits)
        for i in range(len(rows))
    ]


def _of_values(path: Path, values: list[dict[str, Any]], columns: Columns, identity: str, notes: list[str]) -> Input:
    """Utterances that a reader has read whole; its modalities are those that it found."""
    if not values:
        raise DataError(f"{path}: holds no rows")
    present = {
        name for row in values for name, frames in row.items() if name not in ("id", "text") and frames is not None
    }
    missing = [name for name in columns.modalities if name not in present]
    extra = sorted(present - {*columns.modalities, *columns.ignore})
    for name in extra:
        if near := did_you_mean(name, missing):
            raise DataError(f"{path}: has features called {name!r}{near}: --rename or --ignore it")
    notes = [*notes, *(f"{name!r} is not read: the model has no such modality" for name in extra)]
    notes += [f"{name!r} is absent from every utterance" for name in missing]
    notes += unread_features(columns)
    kept = {"id", "text", *columns.modalities}

    def rows() -> Iterator[Row]:
        for number, row in enumerate(values, start=1):
            yield Row(number, number, {name: value for name, value in row.items() if name in kept})

    return Input(path, rows, lambda: identity, False, notes)


def _prepared(path: Path, store: DataStore, trained: Any, split: str | None) -> Input:
    notes = check_prepared(store, trained)
    chosen = list(store.manifest.splits) if split is None else [split]
    for name in chosen:
        store.split(name)  # an unknown one is refused before a model is loaded
    digests = {name: store.manifest.splits[name]["sha256"] for name in chosen}
    changes = standardisation_changes(store.modalities, trained.modalities)

    def rows() -> Iterator[Row]:
        number = 0
        for name in chosen:
            split_rows = store.split(name)
            for index in range(len(split_rows)):
                item = split_rows[index]
                number += 1
                features = {key: change(item[key]) for key, change in changes.items()}
                yield Row(number, number, {"id": item["id"], "text": item["text"], **features})

    return Input(path, rows, lambda: hashlib.sha256(json.dumps(digests).encode()).hexdigest(), True, notes)
