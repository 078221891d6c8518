"""From a source to a data directory: read, check, clean, standardise, write."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deepmlf_llm.data.clean import DEFAULT_CLIP, fit_standardisation, standardise
from deepmlf_llm.data.corpus import (
    LABEL_RANGES,
    Corpus,
    check_corpus,
    check_dataset_name,
    label_statistics,
    length_statistics,
)
from deepmlf_llm.data.dataset import PolarityDataset
from deepmlf_llm.data.manifest import Manifest
from deepmlf_llm.data.mmsa import read_mmsa
from deepmlf_llm.data.npy_folder import read_npy_folder
from deepmlf_llm.data.ragged import Ragged
from deepmlf_llm.data.storage import STORAGES
from deepmlf_llm.data.store import check_output, write_store
from deepmlf_llm.data.text import CASES, DEFAULT_CASE, normalise_text, word_statistics
from deepmlf_llm.errors import ConfigError, DataError, suggest


@dataclass
class PreparationSettings:
    """How a corpus becomes a data set.

    Attributes:
        case: of transcripts: "lower", "sentence", "keep"; None: "lower" for mosi, "keep" for the others.
        clip: standardised values are cut at +- this many standard deviations; None: never.
        frame_rates: modality -> frames a second (Hz), where known.
        storage: "arrow", or "numpy" for machines without ``datasets``.
    """

    case: str | None = None
    clip: float | None = DEFAULT_CLIP
    frame_rates: Mapping[str, float] = field(default_factory=dict)
    storage: str = "arrow"

    def check(self) -> None:
        """Raises ConfigError for a setting that is unknown or out of range."""
        if self.case is not None and self.case not in CASES:
            raise ConfigError(f"case={self.case!r}: expected one of {', '.join(CASES)}{suggest(self.case, CASES)}")
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"clip={self.clip!r}: expected a positive number of standard deviations, or None")
        if self.storage not in STORAGES:
            known = ", ".join(STORAGES)
            raise ConfigError(f"storage={self.storage!r}: expected one of {known}{suggest(self.storage, STORAGES)}")
        for name, rate in self.frame_rates.items():
            if not 0 < rate < float("inf"):
                raise ConfigError(f"frame rate of {name} is {rate!r}: expected a positive number of Hz")


def prepare(
    source: Path | str,
    dataset: str,
    output: Path | str,
    *,
    modalities: Iterable[str] | None = None,
    case: str | None = None,
    clip: float | None = DEFAULT_CLIP,
    frame_rates: Mapping[str, float] | None = None,
    storage: str = "arrow",
) -> Manifest:
    """Prepares an MMSA pickle or a folder of ``.npy`` files with a ``label.csv``.

    The same preparation at the same place again does nothing and returns what is there.

    Args:
        source: the pickle, or the folder.
        dataset: "mosi", "mosei" or "sims": whose labels and metrics these are.
        output: the data directory to make.
        modalities: which to read, in this order; default: all there are.
        case, clip, frame_rates, storage: see :class:`PreparationSettings`.

    Returns:
        The manifest of the data directory.

    Raises:
        DataError: the source is missing, foreign, damaged or wrong in content, or ``output`` holds something else.
            Nothing is written then.
        ConfigError: a setting is unknown or out of range.
    """
    source, output = Path(source), Path(output)
    settings = PreparationSettings(case, clip, dict(frame_rates or {}), storage)
    settings.check()
    check_dataset_name(dataset)
    check_output(output)
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    corpus = read_npy_folder(source, modalities) if source.is_dir() else read_mmsa(source, modalities)
    return prepare_corpus(corpus, dataset, output, settings)


def prepare_corpus(corpus: Corpus, dataset: str, output: Path, settings: PreparationSettings) -> Manifest:
    """What :func:`prepare` does once the source has been read; raises the same errors."""
    dims = check_corpus(corpus, dataset)
    names = list(corpus.splits["train"].features)
    for name in settings.frame_rates:
        if name not in names:
            raise ConfigError(f"frame rate given for {name!r}{suggest(name, names)}: there are {', '.join(names)}")
    case = settings.case or DEFAULT_CASE[dataset]
    low, high = LABEL_RANGES[dataset]
    manifest = Manifest(
        dataset=dataset,
        source=corpus.source,
        settings={
            "case": case,
            "clip": settings.clip,
            "modalities": names,
            "frame_rates": {name: float(rate) for name, rate in settings.frame_rates.items()},
        },
        splits={},
        modalities={},
        labels={"range": [low, high]},
        text={"case": case},
        notes=corpus.notes,
        storage=settings.storage,
    )
    existing = check_output(output)
    if existing is not None:
        if existing.same_preparation(manifest):
            return existing
        raise DataError(
            f"{output}: holds another data set already ({existing.dataset} from {existing.source.get('name')}, or "
            "other settings); give a new directory or remove that one"
        )
    features: dict[str, dict[str, Ragged]] = {split: {} for split in corpus.splits}
    for name in names:
        manifest.modalities[name] = _prepare_modality(corpus, name, dims[name], settings, features)
    splits = {}
    for split, rows in corpus.splits.items():
        splits[split] = PolarityDataset(
            rows.ids,
            [normalise_text(text, case) for text in rows.texts],
            np.clip(rows.labels, low, high),  # within rounding of the range, which the check allows
            features[split],
            rows.unimodal,
        )
    _describe_rows(manifest, splits)
    write_store(output, splits, manifest)
    return manifest


def _prepare_modality(
    corpus: Corpus, name: str, dim: int, settings: PreparationSettings, features: dict[str, dict[str, Ragged]]
) -> dict[str, Any]:
    """Standardises one modality of every split into ``features``; returns its part of the manifest."""
    raw = {split: Ragged.from_sequences(rows.features[name], dim) for split, rows in corpus.splits.items()}
    standardisation = fit_standardisation(raw["train"], settings.clip)
    cleaned = {}
    for split, ragged in raw.items():
        _, counts = standardise(ragged.values, standardisation, out=ragged.values)
        cleaned[split] = counts.to_dict()
        features[split][name] = ragged
    identity = f"precomputed {corpus.source['sha256']} {name} {dim}"
    return {
        "dim": dim,
        "frame_rate": float(settings.frame_rates[name]) if name in settings.frame_rates else None,
        "features": {
            "kind": "precomputed",
            "source": corpus.source["name"],
            "fingerprint": hashlib.sha256(identity.encode()).hexdigest()[:16],
        },
        "standardisation": standardisation.to_dict(),
        "frames": length_statistics({split: ragged.lengths for split, ragged in raw.items()}),
        "absent": {split: int((ragged.lengths == 0).sum()) for split, ragged in raw.items()},
        "cleaned": cleaned,
    }


def _describe_rows(manifest: Manifest, splits: Mapping[str, PolarityDataset]) -> None:
    for name, split in splits.items():
        manifest.splits[name] = {
            "rows": len(split),
            "sha256": split.fingerprint(),
            "labels": label_statistics(split.labels),
            "words": word_statistics(split.texts),
        }
    manifest.labels["min"] = min(facts["labels"]["min"] for facts in manifest.splits.values())
    manifest.labels["max"] = max(facts["labels"]["max"] for facts in manifest.splits.values())
    manifest.text["words"] = word_statistics([text for split in splits.values() for text in split.texts])
