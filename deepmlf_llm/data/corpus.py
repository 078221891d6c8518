"""What every reader hands over: splits of utterances, and the checks that no later stage repeats."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deepmlf_llm.data.facts import feature_problems
from deepmlf_llm.errors import DataError
from deepmlf_llm.tasks.classification import ClassificationTask, class_counts
from deepmlf_llm.tasks.registry import Task, task_of

SPLITS = ("train", "valid", "test")
UNIMODAL_LABELS = ("T", "A", "V")
"""Suffixes of the optional polarity labels of one modality alone (text, audio, vision), as MMSA names them."""

RESERVED_NAMES = {"id", "text", "raw_text", "label", "labels", "input_ids", "attention_mask"}
_LABEL_TOLERANCE = 1e-5


@dataclass
class Utterances:
    """One split as it was read: transcripts, labels, and for each modality one sequence an utterance.

    Attributes:
        ids: unique name of each utterance [N].
        texts: transcripts [N].
        labels: polarity, float64 [N]; of classes the index of each, or with several labels 0 and 1 [N x c]; as the file
            has them (:mod:`~deepmlf_llm.data.class_labels`), until the classes are known.
        features: modality name -> N arrays of real frames [t x d]; t = 0 where the modality is absent. Padding has been
            cut off by the reader.
        unimodal: "T", "A", "V" -> polarity of that modality alone [N], NaN where it was not rated.
    """

    ids: list[str]
    texts: list[str]
    labels: np.ndarray
    features: dict[str, list[np.ndarray]]
    unimodal: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class Corpus:
    """Splits and where they come from.

    Attributes:
        splits: "train", "valid", "test" -> utterances; one at least.
        source: kind ("mmsa", "word_tuples", "split_files", "jsonl", "npy_folder", "clip_folder", "csd", "embedded"),
            name (never a whole path) and sha256 of what was read.
        notes: what the user should know and no number says, one sentence each.
        task: what the labels mean, with the classes that were found; None: it was not asked for.
        modalities: modality -> how its features were made, where the source says: dim, frame_rate, features,
            provenance (:mod:`deepmlf_llm.data.facts`).
    """

    splits: dict[str, Utterances]
    source: dict[str, str]
    notes: list[str] = field(default_factory=list)
    task: Task | None = None
    modalities: dict[str, dict[str, Any]] = field(default_factory=dict)


def check_modality_names(names: Iterable[str]) -> None:
    """Raises DataError for a modality name that could not be a keyword of the model beside its mask."""
    for name in names:
        if not name.isidentifier() or name in RESERVED_NAMES or name.endswith(("_mask", "_lengths")):
            raise DataError(f"modality {name!r}: expected a plain name such as 'audio', 'vision' or 'heart_rate'")
        if name not in ("audio", "vision"):  # these need no torch
            from deepmlf_llm.config.names import name_problem

            if reason := name_problem(name):
                raise DataError(f"modality {name!r}: {reason}; give it another name (--rename {name}=NAME)")


def check_corpus(corpus: Corpus, dataset: str | Task) -> dict[str, int]:
    """Checks all that training relies on, and adds what is only unusual to ``corpus.notes``.

    Returns:
        The dimension of each modality.

    Raises:
        DataError: an empty split; a label that is not a number or out of the data set's range; dimensions that differ
            between utterances or splits; a split without one real frame in any modality.
    """
    task = task_of(dataset)
    name = corpus.source["name"]
    for split, rows in corpus.splits.items():
        if not len(rows):
            raise DataError(f"{name}: split {split!r} is empty")
        if not isinstance(task, ClassificationTask):
            low, high = task.low, task.high
            _check_labels(rows.labels, rows.ids, low, high, f"{name}: split {split!r}, dataset {task.name}")
            for suffix, values in rows.unimodal.items():
                rated = np.where(np.isnan(values), low, values)
                _check_labels(rated, rows.ids, low, high, f"{name}: split {split!r}, label_{suffix}")
        if rows.features and all(not len(frames) for sequences in rows.features.values() for frames in sequences):
            raise DataError(f"{name}: split {split!r} has no real frame in any modality ({', '.join(rows.features)})")
    _note_oddities(corpus, task)
    return _common_dimensions(corpus)


def check_recipe(corpus: Corpus, trained: Mapping[str, Any]) -> None:
    """Raises DataError where a source says that its features were made otherwise than those of the training were."""
    given = {name: corpus.modalities.get(name, {}) for rows in corpus.splits.values() for name in rows.features}
    shared = {name: facts for name, facts in trained.items() if name in given}
    if problems := feature_problems(shared, given):
        raise DataError(f"{corpus.source['name']}: these features do not fit the model: {'; '.join(problems)}")


def _check_labels(labels: np.ndarray, ids: list[str], low: float, high: float, where: str) -> None:
    with np.errstate(invalid="ignore"):
        wrong = ~((labels >= low - _LABEL_TOLERANCE) & (labels <= high + _LABEL_TOLERANCE))  # NaN compares false
    if wrong.any():
        first = int(np.argmax(wrong))
        raise DataError(
            f"{where}: {int(wrong.sum())} of {len(labels)} labels are not numbers in [{low:g}, {high:g}], the first is "
            f"{labels[first]:g} of {ids[first]!r} (row {first})"
        )


def _common_dimensions(corpus: Corpus) -> dict[str, int]:
    dimensions: dict[str, int] = {}
    for split, rows in corpus.splits.items():
        for modality, sequences in rows.features.items():
            for utterance, frames in zip(rows.ids, sequences, strict=True):
                # A row without frames may come without a dimension too, as (0, 0): it says nothing.
                if not len(frames) and not frames.shape[1]:
                    continue
                expected = dimensions.setdefault(modality, frames.shape[1])
                if frames.shape[1] != expected:
                    raise DataError(
                        f"{corpus.source['name']}: {modality} has {frames.shape[1]} dimensions in split {split!r} "
                        f"({utterance!r}), but {expected} before"
                    )
    for modality in next(iter(corpus.splits.values())).features:
        if not dimensions.get(modality):
            raise DataError(f"{corpus.source['name']}: {modality} has no dimension: no utterance has one frame of it")
    return dimensions


def _note_oddities(corpus: Corpus, task: Task) -> None:
    notes: list[str] = []
    owners: dict[str, str] = {}
    repeated: list[str] = []
    for split, rows in corpus.splits.items():
        repeated += [f"{name!r} in {owners[name]} and {split}" for name in rows.ids if name in owners]
        owners.update(dict.fromkeys(rows.ids, split))
        distinct = len(set(rows.ids))
        if distinct < len(rows):
            notes.append(f"{len(rows) - distinct} utterance ids occur twice within {split}")
        empty = [name for name, text in zip(rows.ids, rows.texts, strict=True) if not text.strip()]
        if empty:
            notes.append(f"{len(empty)} transcripts of {split} are empty (such as that of {empty[0]!r})")
        notes += _too_large(rows, split)
    if repeated:
        notes.append(f"{len(repeated)} utterances are in two splits (such as {repeated[0]})")
    first = next(iter(corpus.splits))
    for modality, sequences in corpus.splits[first].features.items():
        if not any(len(frames) for frames in sequences):
            training = "training utterance: nothing can be learnt of it"
            notes.append(f"{modality} is absent from every {training if first == 'train' else first + ' utterance'}")
    if isinstance(task, ClassificationTask):
        counts = class_counts(corpus.splits[first].labels, task)
        for count, missing in zip(counts, task.classes, strict=True):
            if not count and first == "train":
                notes.append(f"no training utterance is of class {missing!r}: it cannot be learnt")
    else:
        largest = max(float(np.abs(rows.labels).max()) for rows in corpus.splits.values())
        if task.low < -1 and task.high > 1 and largest <= 1:
            notes.append("no label is beyond +-1: are these SIMS labels?")
    corpus.notes += [note for note in notes if note not in corpus.notes]


def _too_large(rows: Utterances, split: str) -> list[str]:
    """A sentence for each modality with finite values that float32 cannot hold."""
    notes = []
    for modality, sequences in rows.features.items():
        count, owner = 0, ""
        for utterance, frames in zip(rows.ids, sequences, strict=True):
            if frames.dtype.kind == "f" and frames.dtype.itemsize > 4:
                beyond = int((np.isfinite(frames) & (np.abs(frames) > np.finfo(np.float32).max)).sum())
                count, owner = count + beyond, owner or (utterance if beyond else "")
        if count:
            notes.append(
                f"{count} values of {modality} in {split} are beyond float32 (first in {owner!r}) and count as infinite"
            )
    return notes


def label_statistics(labels: np.ndarray, task: Task | None = None) -> dict[str, Any]:
    """Smallest, largest and mean label, and how many are negative, zero and positive; of classes how many there are."""
    if isinstance(task, ClassificationTask):
        counts = dict(zip(task.classes, class_counts(labels, task), strict=True))
        return {"classes": counts} | ({"none": int((labels == 0).all(axis=1).sum())} if task.several else {})
    return {
        "min": float(labels.min()),
        "max": float(labels.max()),
        "mean": float(labels.mean()),
        "negative": int((labels < 0).sum()),
        "neutral": int((labels == 0).sum()),
        "positive": int((labels > 0).sum()),
    }


def length_statistics(lengths: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Median and largest number of frames over the utterances that have any, and the number of all real frames."""
    present = np.concatenate([split[split > 0] for split in lengths.values()])
    if not len(present):
        return {"median": 0.0, "max": 0, "total": 0}
    return {"median": float(np.median(present)), "max": int(present.max()), "total": math.floor(present.sum())}
