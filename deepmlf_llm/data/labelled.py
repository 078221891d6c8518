"""One split of any labelled data as a trained model reads it: prepared data, or any source the field exchanges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deepmlf_llm.data.clean import standardise
from deepmlf_llm.data.corpus import Corpus, check_recipe
from deepmlf_llm.data.dataset import PolarityDataset
from deepmlf_llm.data.facts import feature_problems
from deepmlf_llm.data.manifest import FILE_NAME
from deepmlf_llm.data.ragged import Ragged
from deepmlf_llm.data.restandardise import standardisation_changes
from deepmlf_llm.data.sources import open_source
from deepmlf_llm.data.store import DataStore, open_store
from deepmlf_llm.data.text import normalise_text
from deepmlf_llm.errors import DataError, Problems, suggest
from deepmlf_llm.tasks.registry import task_of

DEFAULT_SPLIT = "test"


@dataclass
class LabelledSplit:
    """Utterances to measure a model on.

    Attributes:
        name: of the split: "train", "valid" or "test".
        rows: standardised as the model's training data were.
        facts: name and sha256 of what it comes from.
        notes: what the user should know, one sentence each.
    """

    name: str
    rows: PolarityDataset
    facts: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def open_labelled(
    path: Path, trained: Any, split: str | None = None, rename: Mapping[str, str] | None = None
) -> LabelledSplit:
    """Opens one split of labelled data.

    Args:
        path: directory of prepared data, or any source of :mod:`deepmlf_llm.data.sources`, whole or test only.
        trained: settings of the model (``modalities``, ``dataset``, ``task``, ``text``).
        split: which; default: "test", or the only one there is.
        rename: name in a source -> name of the modality.

    Raises:
        DataError: nothing there, no such split, labels of another rule or none, or features that the model was not
            trained on.
    """
    if not path.exists():
        raise DataError(f"--data {path}: no such file or folder")
    if (path / FILE_NAME).is_file():
        if rename:
            raise DataError(f"--rename: {path} is prepared; a modality is renamed when data are prepared")
        return _prepared(open_store(path), trained, split)
    task = task_of(trained.dataset, trained.task)
    corpus = open_source(path, task, modalities=list(trained.modalities), rename=rename)
    name = choose_split(corpus.splits, split, str(path))
    rows = split_as_trained(corpus, name, trained.modalities, trained.text.case)
    facts = {"name": path.resolve().name, "sha256": rows.fingerprint(), "source": corpus.source}
    return LabelledSplit(name, rows, facts, [*corpus.notes, *unread_features(trained)])


def unread_features(trained: Any) -> list[str]:
    """A sentence where a model reads none of what there may be beside the text."""
    return [] if trained.modalities else ["the model reads text alone: no features are read"]


def choose_split(splits: Iterable[str], wanted: str | None, where: str) -> str:
    """``wanted``; without it "test", or the only split there is.

    Raises:
        DataError: there is no such split, or several without a test split among them.
    """
    there = list(splits)
    if wanted is None and len(there) == 1:
        return there[0]
    name = wanted or DEFAULT_SPLIT
    if name not in there:
        raise DataError(f"{where}: no split {name!r}{suggest(name, there)}; it has {', '.join(there)}")
    return name


def check_prepared(store: DataStore, trained: Any) -> list[str]:
    """Whether prepared data are of the kind that a model was trained on.

    Returns:
        What differs without harm, in sentences.

    Raises:
        DataError: a modality is missing, has another dimension or was made in another way, or the label rule differs.
    """
    problems = Problems(DataError, f"{store.directory}: these data do not fit the adapter")
    problems.messages += task_problems(store, trained)
    problems.messages += feature_problems(trained.modalities, store.modalities)
    problems.raise_if_any()
    notes = [change.note for change in standardisation_changes(store.modalities, trained.modalities).values()]
    case = store.manifest.text["case"]
    if case != trained.text.case:
        notes.append(f"transcripts were prepared in case {case!r}, the adapter was trained on {trained.text.case!r}")
    return [*(note for note in notes if note), *unread_features(trained)]


def task_problems(store: DataStore, trained: Any) -> list[str]:
    """Why the labels of prepared data are not those that a model predicts; empty where they are."""
    rule, known = store.manifest.dataset, trained.dataset
    there, wanted = task_of(rule, store.manifest.task), task_of(known, trained.task)
    if not (differs := there.differences(wanted)):
        return []
    what = f" ({differs})" if there.to_dict() or wanted.to_dict() else ""
    return [f"labels of {rule!r}, the adapter predicts those of {known!r}{what}"]


def _prepared(store: DataStore, trained: Any, split: str | None) -> LabelledSplit:
    name = choose_split(store.manifest.splits, split, str(store.directory))
    notes = check_prepared(store, trained)
    rows = store.split(name)
    changes = standardisation_changes(store.modalities, trained.modalities)
    features = {
        modality: Ragged(change(rows.features[modality].values), rows.features[modality].offsets)
        for modality, change in changes.items()
    }
    facts = {"name": store.directory.name, "sha256": store.manifest.splits[name]["sha256"]}
    return LabelledSplit(
        name, PolarityDataset(rows.ids, rows.texts, rows.labels, features, rows.unimodal), facts, notes
    )


def split_as_trained(corpus: Corpus, split: str, modalities: Mapping[str, Any], case: str) -> PolarityDataset:
    """One split of raw features as a trained model reads it: with the standardisation and case of its training.

    Args:
        corpus: from :func:`deepmlf_llm.data.sources.open_source`.
        split: "train", "valid" or "test".
        modalities: name -> what the model remembers of it (``config.modalities``): ``dim``, ``standardisation``.
        case: of transcripts (``config.text.case``).

    Raises:
        DataError: no such split or modality, features of another dimension, or values that are not finite where the
            model has no standardisation that says what they mean.
    """
    name = corpus.source["name"]
    check_recipe(corpus, modalities)
    if split not in corpus.splits:
        raise DataError(f"{name}: no split {split!r}; it has {', '.join(corpus.splits)}")
    rows = corpus.splits[split]
    features = {}
    for modality, facts in modalities.items():
        if modality not in rows.features:
            raise DataError(f"{name}: no modality {modality!r}{suggest(modality, rows.features)}")
        dim = facts["dim"] if isinstance(facts, Mapping) else facts.dim
        standardisation = facts["standardisation"] if isinstance(facts, Mapping) else facts.standardisation
        for utterance, frames in zip(rows.ids, rows.features[modality], strict=True):
            if len(frames) and frames.shape[1] != dim:
                raise DataError(f"{name}: {modality} has {frames.shape[1]} dimensions ({utterance!r}), expected {dim}")
        ragged = Ragged.from_sequences(rows.features[modality], dim)
        if standardisation is not None:
            standardise(ragged.values, standardisation, out=ragged.values)
        elif not np.isfinite(ragged.values).all():
            raise DataError(f"{name}: {modality} holds NaN or infinity, and the model has no standardisation for them")
        features[modality] = ragged
    texts = [normalise_text(text, case) for text in rows.texts]
    return PolarityDataset(rows.ids, texts, rows.labels, features, rows.unimodal)
