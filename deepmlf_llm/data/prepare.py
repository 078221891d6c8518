"""From a source to a data directory: read, check, clean, standardise, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from deepmlf_llm.data.class_labels import resolve_labels, weigh_classes
from deepmlf_llm.data.clean import DEFAULT_CLIP, Cleaned, Standardisation, fit_standardisation, standardise
from deepmlf_llm.data.corpus import SPLITS, Corpus, check_corpus, label_statistics, length_statistics
from deepmlf_llm.data.dataset import PolarityDataset
from deepmlf_llm.data.facts import CORPUS, PRECOMPUTED, STANDARDISATIONS, STANDARDISED_BY, VIDEO
from deepmlf_llm.data.folds import Fold, fold_corpus
from deepmlf_llm.data.manifest import Manifest
from deepmlf_llm.data.ragged import Ragged
from deepmlf_llm.data.sources import open_source
from deepmlf_llm.data.storage import STORAGES
from deepmlf_llm.data.store import DataStore, check_output, open_store, write_store
from deepmlf_llm.data.text import CASES, normalise_text, word_statistics
from deepmlf_llm.data.videos import standardise_within, videos_of
from deepmlf_llm.errors import ConfigError, DataError, Problems, suggest
from deepmlf_llm.tasks.classification import ClassificationTask
from deepmlf_llm.tasks.registry import Task, task_of


@dataclass
class PreparationSettings:
    """How a corpus becomes a data set.

    Attributes:
        case: of transcripts: "lower", "sentence", "keep"; None: the task's: "lower" for mosi, "keep" for the others.
        clip: standardised values are cut at +- this many standard deviations; None: never.
        frame_rates: modality -> frames a second (Hz), where known.
        storage: "arrow", or "numpy" for machines without ``datasets``.
        standardisations: modality -> standardisation of earlier data; without one it is that of the training split.
        like: name and sha256 of the training split of those data.
        fold: of a cross-validation over videos; None: the splits of the source.
        standardised_by: "video": within each video first, by its own frames; "corpus": over the training split alone;
            None: as ``like``, or "corpus".
    """

    case: str | None = None
    clip: float | None = DEFAULT_CLIP
    frame_rates: Mapping[str, float] = field(default_factory=dict)
    storage: str = "arrow"
    standardisations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    like: dict[str, str] | None = None
    fold: Fold | None = None
    standardised_by: str | None = None

    def check(self) -> None:
        """Raises ConfigError for a setting that is unknown or out of range."""
        if self.case is not None and self.case not in CASES:
            raise ConfigError(f"case={self.case!r}: expected one of {', '.join(CASES)}{suggest(self.case, CASES)}")
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"clip={self.clip!r}: expected a positive number of standard deviations, or None")
        if self.storage not in STORAGES:
            known = ", ".join(STORAGES)
            raise ConfigError(f"storage={self.storage!r}: expected one of {known}{suggest(self.storage, STORAGES)}")
        by = self.standardised_by
        if by is not None and by not in STANDARDISATIONS:
            known = ", ".join(STANDARDISATIONS)
            raise ConfigError(f"standardised_by={by!r}: expected one of {known}{suggest(by, STANDARDISATIONS)}")
        for name, rate in self.frame_rates.items():
            if not 0 < rate < float("inf"):
                raise ConfigError(f"frame rate of {name} is {rate!r}: expected a positive number of Hz")


def prepare(
    source: Path | str,
    dataset: str | Task,
    output: Path | str,
    *,
    modalities: Sequence[str] | None = None,
    rename: Mapping[str, str] | None = None,
    like: Path | str | None = None,
    case: str | None = None,
    clip: float | None = DEFAULT_CLIP,
    frame_rates: Mapping[str, float] | None = None,
    storage: str = "arrow",
    fold: Fold | None = None,
    standardised_by: str | None = None,
) -> Manifest:
    """Prepares any source that :mod:`deepmlf_llm.data.sources` lists.

    The same preparation at the same place again does nothing and returns what is there.

    Args:
        source: the file or folder.
        dataset: whose labels and metrics these are: name of a shipped data set, or a task of one's own
            (:func:`deepmlf_llm.tasks.read_task`).
        output: the data directory to make.
        modalities: which to read, in this order; default: all there are.
        rename: name in the source -> name of the modality.
        like: a data directory whose modalities, case, clip and standardisation hold here too; the source may have one
            split only then, for evaluation.
        case, clip, frame_rates, storage, fold, standardised_by: see :class:`PreparationSettings`.

    Returns:
        The manifest of the data directory.

    Raises:
        DataError: the source is missing, foreign, damaged or wrong in content, or ``output`` holds something else.
            Nothing is written then.
        ConfigError: a setting is unknown or out of range.
    """
    source, output = Path(source), Path(output)
    settings = PreparationSettings(
        case, clip, dict(frame_rates or {}), storage, fold=fold, standardised_by=standardised_by
    )
    settings.check()
    task = task_of(dataset)
    check_output(output)
    if like is not None:
        settings = _settings_like(settings, open_store(like), task.name)
        task = open_store(like).task
        modalities = modalities or list(settings.standardisations)
    if not source.exists() and not source.is_symlink():
        raise DataError(f"{source}: no such file or folder")
    corpus = open_source(source, task, modalities=modalities, rename=rename)
    return prepare_corpus(corpus, corpus.task or task, output, settings)


def prepare_corpus(corpus: Corpus, dataset: str | Task, output: Path, settings: PreparationSettings) -> Manifest:
    """What :func:`prepare` does once the source has been read; raises the same errors."""
    if settings.fold is not None:
        corpus = fold_corpus(corpus, settings.fold)
    _check_splits(corpus, settings)
    task = weigh_classes(corpus, resolve_labels(corpus, task_of(dataset)))
    dims = check_corpus(corpus, task)
    names = list(next(iter(corpus.splits.values())).features)
    if not names:
        raise DataError(
            f"{corpus.source['name']}: no modality to prepare, expected at least one such as audio or vision"
        )
    for name in settings.frame_rates:
        if name not in names:
            raise ConfigError(f"frame rate given for {name!r}{suggest(name, names)}: there are {', '.join(names)}")
    manifest = _begun_manifest(corpus, task, names, settings)
    if (existing := _existing(output, manifest)) is not None:
        return existing
    features: dict[str, dict[str, Ragged]] = {split: {} for split in corpus.splits}
    for name in names:
        manifest.modalities[name] = _prepare_modality(corpus, name, dims[name], settings, features)
    splits = {}
    for split, rows in corpus.splits.items():
        splits[split] = PolarityDataset(
            rows.ids,
            [normalise_text(text, manifest.text["case"]) for text in rows.texts],
            # Within rounding of the range, which the check allows.
            rows.labels if isinstance(task, ClassificationTask) else np.clip(rows.labels, task.low, task.high),
            features[split],
            rows.unimodal,
        )
    _describe_rows(manifest, splits, task)
    write_store(output, splits, manifest)
    return manifest


def _begun_manifest(corpus: Corpus, task: Task, names: list[str], settings: PreparationSettings) -> Manifest:
    """What is known before features are read: where they come from, and how they are prepared."""
    case = settings.case or task.text_case
    return Manifest(
        dataset=task.name,
        source=corpus.source,
        settings={
            "case": case,
            "clip": settings.clip,
            "modalities": names,
            "frame_rates": {name: float(rate) for name, rate in settings.frame_rates.items()},
            **({"like": settings.like} if settings.like else {}),
            **({"fold": str(settings.fold)} if settings.fold else {}),
            **({STANDARDISED_BY: VIDEO} if settings.standardised_by == VIDEO else {}),
        },
        splits={},
        modalities={},
        labels={} if isinstance(task, ClassificationTask) else {"range": [task.low, task.high]},
        text={"case": case},
        notes=corpus.notes,
        storage=settings.storage,
        task=task.to_dict(),
    )


def _check_splits(corpus: Corpus, settings: PreparationSettings) -> None:
    """Raises DataError unless there is what the settings need: a training split, or other data to prepare like."""
    missing = [split for split in SPLITS if split not in corpus.splits]
    if missing and settings.like is None:
        raise DataError(
            f"{corpus.source['name']}: expected the splits {', '.join(SPLITS)}, found {', '.join(corpus.splits)}: "
            "training needs all three. What is for evaluation alone goes to evaluate as it is, or is prepared like the "
            "training data (--like DATA)"
        )


def _existing(output: Path, manifest: Manifest) -> Manifest | None:
    """What is at ``output`` already, if it is the same preparation; raises DataError for any other data set there."""
    existing = check_output(output)
    if existing is None or existing.same_preparation(manifest):
        return existing
    raise DataError(
        f"{output}: holds another data set already ({existing.dataset} from {existing.source.get('name')}, or other "
        "settings); give a new directory or remove that one"
    )


def _prepare_modality(
    corpus: Corpus, name: str, dim: int, settings: PreparationSettings, features: dict[str, dict[str, Ragged]]
) -> dict[str, Any]:
    """Standardises one modality of every split into ``features``; returns its part of the manifest."""
    raw = {split: Ragged.from_sequences(rows.features[name], dim) for split, rows in corpus.splits.items()}
    by_video = settings.standardised_by == VIDEO
    within = {split: Cleaned() for split in raw}
    if by_video:
        for split, rows in corpus.splits.items():
            videos = videos_of(rows.ids, corpus.source["name"], "features standardised by video")
            within[split] = standardise_within(raw[split], videos)
    standardisation = _standardisation(settings, name, dim) or fit_standardisation(raw["train"], settings.clip)
    cleaned = {}
    for split, ragged in raw.items():
        _, counts = standardise(ragged.values, standardisation, out=ragged.values)
        cleaned[split] = (within[split] + counts).to_dict()
        features[split][name] = ragged
    known = corpus.modalities.get(name, {})
    source = {"source": corpus.source["name"], "sha256": corpus.source["sha256"]}
    return {
        "dim": dim,
        "frame_rate": float(settings.frame_rates[name]) if name in settings.frame_rates else known.get("frame_rate"),
        "features": {**known.get("features", {"kind": PRECOMPUTED}), **({STANDARDISED_BY: VIDEO} if by_video else {})},
        "provenance": {**known.get("provenance", {}), **source},
        "standardisation": standardisation.to_dict(),
        "frames": length_statistics({split: ragged.lengths for split, ragged in raw.items()}),
        "absent": {split: int((ragged.lengths == 0).sum()) for split, ragged in raw.items()},
        "cleaned": cleaned,
    }


def _settings_like(settings: PreparationSettings, store: DataStore, dataset: str) -> PreparationSettings:
    """The settings of other data; raises ConfigError where those that were given contradict them."""
    if settings.fold is not None:
        given = f"fold {settings.fold} with like={store.directory}"
        raise ConfigError(f"{given}: what is prepared like other data is evaluated whole")
    manifest = store.manifest
    problems = Problems(ConfigError, f"like {store.directory}")
    problems.check(dataset == manifest.dataset, f"it is {manifest.dataset}, not {dataset}")
    case = manifest.text["case"]
    problems.check(settings.case in (None, case), f"its case is {case}, not {settings.case}")
    problems.check("train" in manifest.splits, "it has no training split")
    by, by_given = manifest.settings.get(STANDARDISED_BY, CORPUS), settings.standardised_by
    problems.check(by_given in (None, by), f"its features are standardised by {by}, not by {by_given}")
    problems.raise_if_any()
    rates = {name: facts["frame_rate"] for name, facts in store.modalities.items() if facts["frame_rate"]}
    return replace(
        settings,
        case=case,
        clip=manifest.settings["clip"],
        frame_rates={**rates, **settings.frame_rates},
        standardisations={name: facts["standardisation"] for name, facts in store.modalities.items()},
        standardised_by=by,
        like={"name": store.directory.resolve().name, "sha256": manifest.splits["train"]["sha256"]},
    )


def _standardisation(settings: PreparationSettings, name: str, dim: int) -> Standardisation | None:
    """That of the earlier data; raises DataError where it is of other features, None where there is none."""
    if settings.like is None:
        return None
    facts = settings.standardisations.get(name)
    if facts is None or len(facts["mean"]) != dim:
        there = f"it has {len(facts['mean'])} dimensions there, {dim} here" if facts else "it is not there"
        raise DataError(f"{name} cannot be prepared like {settings.like['name']}: {there}")
    return Standardisation(**facts)


def _describe_rows(manifest: Manifest, splits: Mapping[str, PolarityDataset], task: Task) -> None:
    for name, split in splits.items():
        manifest.splits[name] = {
            "rows": len(split),
            "sha256": split.fingerprint(),
            "labels": label_statistics(split.labels, task),
            "words": word_statistics(split.texts),
        }
    if not isinstance(task, ClassificationTask):
        manifest.labels["min"] = min(facts["labels"]["min"] for facts in manifest.splits.values())
        manifest.labels["max"] = max(facts["labels"]["max"] for facts in manifest.splits.values())
    manifest.text["words"] = word_statistics([text for split in splits.values() for text in split.texts])
