"""Whatever the field exchanges, read by what it is: one function for every labelled source.

=================================  ==================================================================================
an MMSA pickle                     ``{"train" | "valid" | "test": {"id", "raw_text", "regression_labels", ...}}``
a pickle of word tuples            ``{"train" | "dev" | "test": [((words, visual, acoustic), label, id), ...]}``
one pickle or JSON Lines a split   a folder with ``train.pkl``, ``valid.pkl``, ``test.pkl`` (or ``.jsonl``, or folders)
JSON Lines                         one object an utterance, with its split in ``mode``, or all of one split
a folder of clips                  ``label.csv`` and ``<modality>/*.npy``
extracted features of clips        ``features.json``, ``label.csv`` and ``clips/*.npz``
a folder of ``.csd`` files         CMU-MultimodalSDK's labels, words and features, with ``splits.json``
=================================  ==================================================================================

A source may have one split only: training needs all three, evaluation one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepmlf_llm.data.class_labels import resolve_labels
from deepmlf_llm.data.clip_folder import RECIPE, read_clip_folder
from deepmlf_llm.data.corpus import Corpus, Utterances, check_corpus
from deepmlf_llm.data.csd import SUFFIX, read_csd_folder
from deepmlf_llm.data.file_kind import FORMATS, JSON_LINES, PICKLE, file_kind
from deepmlf_llm.data.mmsa import left_out, modality_columns, read_columns
from deepmlf_llm.data.npy_folder import TABLE, read_npy_folder
from deepmlf_llm.data.records import by_split, modality_keys, read_json_lines, read_records
from deepmlf_llm.data.single_clip import is_single_clip
from deepmlf_llm.data.source_names import SPLIT_NAMES, Reading, split_keys, split_name
from deepmlf_llm.data.unpickle import load_pickle
from deepmlf_llm.data.word_tuples import PLACES, are_word_tuples, read_word_tuples
from deepmlf_llm.errors import DataError
from deepmlf_llm.files import sha256
from deepmlf_llm.tasks.registry import Task, task_of

SUFFIXES = (".pkl", ".pickle", ".jsonl")


def open_source(
    source: Path | str,
    dataset: str | Task,
    *,
    modalities: Sequence[str] | None = None,
    rename: Mapping[str, str] | None = None,
    labelled: bool = True,
) -> Corpus:
    """Reads any source that :mod:`deepmlf_llm.data.sources` lists, whole or test only: raw features, checked labels.

    What trained models read is made of it by :func:`deepmlf_llm.data.labelled.split_as_trained`.

    Args:
        source: the file or folder.
        dataset: whose labels these are: name of a shipped data set, or a task (:func:`deepmlf_llm.tasks.read_task`).
        modalities: which to read, in this order; default: all there are; empty: the text alone.
        rename: name in the source -> name of the modality.
        labelled: every utterance must have a label within the data set's range; False: labels are not looked at, and
            NaN where there is none.

    Returns:
        The splits that are there (at least one), where they come from, notes, and the task with its classes.

    Raises:
        DataError: the source is missing, foreign, damaged or wrong in content; the message says what it is instead,
            or which row is wrong. Nothing in it is executed.
    """
    path = Path(source)
    task_of(dataset)  # an unknown one is refused before anything is read
    reading = Reading(dataset, None if modalities is None else tuple(modalities), dict(rename or {}), labelled)
    try:
        corpus = _read_folder(path, reading) if path.is_dir() else _read_file(path, reading)
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read ({error.strerror or error})") from None
    if labelled:
        corpus.task = resolve_labels(corpus, reading.task)
        check_corpus(corpus, corpus.task)
    return corpus


def _read_file(path: Path, reading: Reading) -> Corpus:
    contents, kind = _contents(path, split_name(path.stem) or "test")
    source = {"kind": kind, "name": path.name, "sha256": sha256(path)}
    return _read_contents(contents, str(path), source, reading)


def _contents(path: Path, fallback: str) -> tuple[dict[str, Any], str]:
    """What a file holds of each split, and which kind of source that is; ``fallback``: the split that it does not name.

    Raises:
        DataError: it is not a source; the message says what it is.
    """
    kind = file_kind(path)
    if kind.name == JSON_LINES:
        return by_split(list(read_json_lines(path)), fallback, str(path)), "jsonl"
    if kind.name != PICKLE:
        raise kind.refuse(path)
    contents = _splits_of(_text_keys(_load(path)), fallback, path)
    tuples = any(isinstance(content, list) and are_word_tuples(content) for content in contents.values())
    return contents, "word_tuples" if tuples else "mmsa"


def _load(path: Path) -> Any:
    try:
        return load_pickle(path)
    except DataError as error:
        with path.open("rb") as file:
            file.seek(-1, 2)
            whole = file.read() == b"."
        if whole:
            raise
        reason = f"it has {path.stat().st_size} bytes and does not end as a pickle does: download or copy it again"
        raise DataError(f"{error}; {reason}") from None


def _text_keys(tree: Any) -> Any:
    """Names that a pickle has as bytes, as strings: of the splits and of their columns."""
    if not isinstance(tree, dict):
        return tree
    named = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in tree.items()}
    return {key: _text_keys(value) if key in SPLIT_NAMES else value for key, value in named.items()}


def _splits_of(tree: Any, fallback: str, path: Path) -> dict[str, Any]:
    if isinstance(tree, np.ndarray) and tree.dtype == object and tree.ndim == 1:
        tree = list(tree)
    if isinstance(tree, list) and tree and isinstance(tree[0], dict):
        _check_records(tree, str(path))
        return by_split(tree, fallback, str(path))
    if isinstance(tree, list) and are_word_tuples(tree):
        return {fallback: tree}
    if isinstance(tree, dict):
        keys = split_keys(tree, str(path))
        if keys:
            return {split: tree[key] for split, key in keys.items()}
        if "raw_text" in tree and isinstance(tree.get("id"), (list, tuple, np.ndarray)):
            return {fallback: tree}
        if is_single_clip(tree):
            raise DataError(f"{path}: is one clip without a label, as MMSA-FET writes it: predict reads that")
    found = ", ".join(map(str, list(tree)[:8])) if isinstance(tree, dict) else f"a {type(tree).__name__}"
    raise DataError(f"{path}: no MMSA pickle: expected the splits train, valid, test, found {found or 'nothing'}")


def _read_contents(contents: Mapping[str, Any], where: str, source: dict[str, str], reading: Reading) -> Corpus:
    """Reads each split by the form it has; one choice of modalities holds for all of them."""
    corpus = Corpus({}, source)
    forms = {split: _form(content, f"{where}: split {split!r}") for split, content in contents.items()}
    present: dict[str, None] = {}
    for split, content in contents.items():
        present |= dict.fromkeys(forms[split][0](content, reading))
    first = next(iter(contents), "")
    keys = reading.keys(present, f"{where}: split {first!r}", corpus.notes)
    for split, content in contents.items():
        corpus.splits[split] = forms[split][1](content, keys, reading, f"{where}: split {split!r}", corpus.notes)
    others = sorted({name for content in contents.values() if isinstance(content, dict) for name in left_out(content)})
    others = [name for name in others if name not in keys.values()]
    if others:
        corpus.notes.append(f"left out: {', '.join(others)} (text features are not needed; name others as modalities)")
    return corpus


def _form(content: Any, where: str) -> tuple[Callable[..., Iterable[str]], Callable[..., Utterances]]:
    """How the content of a split is read: what finds its modalities, and what reads it."""
    if isinstance(content, dict):
        return lambda split, reading: modality_columns(
            split, tuple(reading.modalities or ()) + tuple(reading.rename)
        ), read_columns
    if isinstance(content, (list, tuple)):
        if not content:
            raise DataError(f"{where} is empty")
        if are_word_tuples(content):
            return lambda *_: PLACES, read_word_tuples
        if isinstance(content[0], dict):
            _check_records(content, where)
            return lambda records, _: modality_keys(records), read_records
    found = type(content[0]).__name__ + "s in a list" if isinstance(content, list) else type(content).__name__
    raise DataError(
        f"{where} holds {found}; expected columns (id, raw_text, regression_labels, ...), word tuples or dictionaries"
    )


def _check_records(records: Sequence[Any], where: str) -> None:
    """Raises DataError for the first of a list of dictionaries that is none."""
    row = next((row for row, record in enumerate(records) if not isinstance(record, dict)), None)
    if row is not None:
        raise DataError(f"{where}: row {row} is a {type(records[row]).__name__}, expected a dictionary as row 0 is")


def _read_folder(path: Path, reading: Reading) -> Corpus:
    names = {entry.name for entry in path.iterdir()}
    if "manifest.json" in names:
        raise DataError(f"{path}: is a data directory, prepared already; a source is expected here")
    if RECIPE in names:
        return read_clip_folder(path, reading)
    if TABLE in names:
        return read_npy_folder(path, reading)
    if any(name.lower().endswith(SUFFIX) for name in names):
        return read_csd_folder(path, reading)
    files = _split_files(path)
    if files:
        return _read_split_files(path, files, reading)
    if {"adapter_config.json", "config.json", "result.json"} & names:
        raise DataError(f"{path}: holds a model or a run, no data")
    near = sorted(name for name in names if name.lower().endswith((".csv", ".tsv", ".xlsx")))
    single = sorted(name for name in names if name.endswith(SUFFIXES))
    hint = (
        f"is {near[0]} meant as {TABLE}?" if near else f"give {single[0]} itself" if single else f"expected {FORMATS}"
    )
    raise DataError(f"{path}: no {TABLE} in this folder, and no file a split; it has {_some(names)}; {hint}")


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") or "nothing"


def _split_files(path: Path) -> dict[str, list[Path]]:
    """The files of each split: ``train.pkl``, ``dev.jsonl``, or all ``.jsonl`` files of a folder ``train``."""
    found: dict[str, list[Path]] = {}
    for entry in sorted(path.iterdir()):
        split = SPLIT_NAMES.get((entry.stem if entry.suffix in SUFFIXES else entry.name).lower())
        parts = sorted(entry.glob("*.jsonl")) if entry.is_dir() else [entry] if entry.suffix in SUFFIXES else []
        if split is None or not parts:
            continue
        if split in found:
            raise DataError(
                f"{path}: both {found[split][0].name} and {entry.name} would be the split {split}; remove one"
            )
        found[split] = parts
    return {split: found[split] for split in ("train", "valid", "test") if split in found}


def _read_split_files(path: Path, files: Mapping[str, list[Path]], reading: Reading) -> Corpus:
    contents: dict[str, Any] = {}
    digest = hashlib.sha256()
    for split, parts in files.items():
        for part in parts:
            held, _ = _contents(part, split)
            if set(held) != {split}:
                raise DataError(
                    f"{part}: holds the splits {', '.join(held)}, but its name says {split}; give the file itself"
                )
            contents[split] = contents[split] + held[split] if split in contents else held[split]
            digest.update(f"{split} {sha256(part)}\n".encode())
    source = {"kind": "split_files", "name": path.resolve().name, "sha256": digest.hexdigest()}
    return _read_contents(contents, str(path), source, reading)
