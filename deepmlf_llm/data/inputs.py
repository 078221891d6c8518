"""What predictions are made of: a file or folder of utterances, read row by row.

========================  ====================================================================================
``.jsonl``, ``.parquet``  one utterance a row, raw features; see :mod:`deepmlf_llm.data.rows`
prepared data             a directory with ``manifest.json``; its standardisation is changed to the model's
========================  ====================================================================================
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deepmlf_llm.data.clean import standardise
from deepmlf_llm.data.columns import ColumnError, Columns
from deepmlf_llm.data.facts import feature_problems
from deepmlf_llm.data.manifest import FILE_NAME
from deepmlf_llm.data.rows import SUFFIXES, Row, check_row_file, read_rows
from deepmlf_llm.data.store import DataStore, open_store
from deepmlf_llm.errors import DataError
from deepmlf_llm.files import sha256


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


def open_input(path: Path, columns: Columns, trained: Any, split: str | None = None) -> Input:
    """Opens what predictions are made of; its first rows are looked at.

    Args:
        path: of the file or folder.
        columns: which keys of a row are read.
        trained: settings of the model (``modalities``, ``dataset``, ``text``).
        split: of a source that has splits; default: all of them, one after the other.

    Raises:
        DataError: nothing there, of another kind, without rows, or with features under names that are not known.
    """
    if not path.exists():
        raise DataError(f"--input {path}: no such file or folder")
    if path.is_dir() and (path / FILE_NAME).is_file():
        return _prepared(path, open_store(path), trained, split)
    if not path.is_file() or path.suffix not in SUFFIXES:
        raise DataError(
            f"--input {path}: expected a file ending in {', '.join(SUFFIXES)}, or a directory of prepared data"
        )
    if split is not None:
        raise DataError(f"--split {split}: {path.name} has no splits")
    _check_names(path, check_row_file(path), columns)
    return Input(path, lambda: read_rows(path), lambda: sha256(path))


def _check_names(path: Path, first: list[Row], columns: Columns) -> None:
    """Raises DataError where all of the first rows call something otherwise than the model does."""
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


def _prepared(path: Path, store: DataStore, trained: Any, split: str | None) -> Input:
    problems = feature_problems(trained.modalities, store.modalities)
    if problems:
        raise DataError(f"{path}: these data do not fit the model: {'; '.join(problems)}")
    chosen = list(store.manifest.splits) if split is None else [split]
    digests = {name: store.manifest.splits[name]["sha256"] for name in chosen if name in store.manifest.splits}
    change = {name: standardisation_change(store.modalities[name], facts) for name, facts in trained.modalities.items()}

    def rows() -> Iterator[Row]:
        number = 0
        for name in chosen:
            for item in store.split(name):  # type: ignore[attr-defined]
                number += 1
                features = {key: change[key](item[key]) for key in change}
                yield Row(number, number, {"id": item["id"], "text": item["text"], **features})

    notes = [note for name in change if (note := change[name].note.format(name=name))]
    for name in chosen:
        store.split(name)  # an unknown one is refused before a model is loaded
    return Input(path, rows, lambda: hashlib.sha256(json.dumps(digests).encode()).hexdigest(), True, notes)


@dataclass(frozen=True)
class StandardisationChange:
    """From features that are standardised in one way to the same features standardised in another.

    Args:
        given: standardisation that they have; None: raw.
        wanted: the one they shall have; None: raw.

    Attributes:
        note: what the user should know, with ``{name}`` for the modality; empty where nothing changes.
    """

    given: Mapping[str, Any] | None
    wanted: Mapping[str, Any] | None

    @property
    def note(self) -> str:
        if self.given == self.wanted:
            return ""
        return (
            "{name} was standardised by these data's own training split and is now by the adapter's; what that "
            "clipped or left out as constant is lost"
        )

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """``frames`` [t x d] in the other standardisation, float32."""
        if self.given == self.wanted or not len(frames):
            return frames
        raw = frames.astype(np.float64)
        if self.given is not None:
            raw = raw * np.asarray(self.given["std"]) + np.asarray(self.given["mean"])
        if self.wanted is None:
            return raw.astype(np.float32)
        return standardise(raw, self.wanted)[0]


def standardisation_change(given: Mapping[str, Any], trained: Any) -> StandardisationChange:
    """What is to be done to features of prepared data (a modality's facts in its store) for a model (its facts)."""
    return StandardisationChange(given.get("standardisation"), trained.standardisation)
