"""One baseline from settings to the files that a run has: ``result.json``, predictions, plots."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepmlf_llm.baselines.constant import constant_predictions
from deepmlf_llm.baselines.ridge import Ridge, best_ridge
from deepmlf_llm.baselines.settings import BaselineSettings
from deepmlf_llm.errors import ConfigError, RunError
from deepmlf_llm.files import directory_aside
from deepmlf_llm.paths import shown
from deepmlf_llm.statistics.predictions import FILE, POLARITY, Predictions, utterance_ids
from deepmlf_llm.tasks.metrics import polarity_metrics, regression_of
from deepmlf_llm.training.assemble import resolve_base_model
from deepmlf_llm.training.data import TrainingData, chosen_modalities, load_data, tokenised, training_split
from deepmlf_llm.training.environment import environment
from deepmlf_llm.training.metrics_log import finite
from deepmlf_llm.training.result import measured
from deepmlf_llm.training.run_directory import RESULT
from deepmlf_llm.training.scores import Score, write_beside

RUNS = Path("runs")
SPLITS = {"validation": "valid", "test": "test"}
Arrays = Mapping[str, NDArray[np.float32]]


def run_baseline(settings: BaselineSettings, data: TrainingData | None = None) -> dict[str, Any]:
    """Fits a baseline on the training split, selects on validation, and looks at the test split once.

    Args:
        settings: which, and how.
        data: the splits; default: what ``settings.data`` names.

    Returns:
        What ``result.json`` in its directory holds, by the keys of a run's.

    Raises:
        RunError: the directory is there already.
        DeepMLFError: data or base model are at fault; nothing half-written is left.
    """
    place = (
        Path(settings.output_dir) if settings.output_dir else RUNS / f"baseline-{settings.kind}-seed-{settings.seed}"
    )
    if place.exists():
        raise RunError(f"output_dir={shown(place)}: is there already; name another, or move it away")
    began = time.monotonic()
    data = load_data(settings.as_run()) if data is None else data
    regression_of(data.rules)  # classes are refused by name
    data = replace(data, train=training_split(settings.as_run(), data))
    work = _Work(settings, data)
    predictions, facts = work.fitted()
    scores = {shown: _score(data, split, predictions[split]) for shown, split in SPLITS.items()}
    result = {
        "status": "finished",
        "config": {"baseline": settings.kind, **settings.to_dict()},
        "seed": settings.seed,
        **measured(scores["validation"], scores["test"]),
        "train": {**facts, "total_seconds": round(time.monotonic() - began, 1)},
        "data": {**data.facts, "used": {name: {"utterances": len(labels)} for name, labels in work.labels.items()}},
        "base_model": {"name": work.base_name},
        "environment": environment(),
    }
    with directory_aside(place) as aside:
        for note in write_beside(aside, scores.values(), scores["test"], FILE):
            print(f"note: {note}")
        text = json.dumps(finite(result), indent=2, ensure_ascii=False, allow_nan=False, default=str)
        (aside / RESULT).write_text(text + "\n", encoding="utf-8")
    return result


def _score(data: TrainingData, split: str, polarity: NDArray[np.float32]) -> Score:
    rows = getattr(data, split)
    ids, heads = utterance_ids(rows, len(rows)), {POLARITY: polarity}
    found = Predictions(data.dataset, split, ids, _labels(rows), heads, data.task)
    return Score.of(found, {"metrics": polarity_metrics(found.head(), found.labels, found.rules)})


def _labels(split: Any) -> NDArray[np.float32]:
    known = getattr(split, "labels", None)
    return np.asarray([split[i]["label"] for i in range(len(split))] if known is None else known, np.float32)


class _Work:
    """What the kinds share: labels, tokens, the base model, its states."""

    def __init__(self, settings: BaselineSettings, data: TrainingData) -> None:
        self.settings, self.data = settings, data
        self.labels = {name: _labels(split) for name, split in data.splits().items()}
        self.base_name = resolve_base_model(settings.base_model) if settings.reads_text else None

    def fitted(self) -> tuple[Arrays, dict[str, Any]]:
        """Predictions of validation and test, and what ``train`` of the result says."""
        kind = self.settings.kind
        if kind == "constant":
            predictions, value = constant_predictions(self.labels)
            return predictions, {"value": value, "steps": 0}
        if kind == "ridge":
            ridge, _ = self.ridge()
            return ridge.predictions, {**ridge.facts(), "steps": 0}
        return self.lora_text() if kind == "lora_text" else self.bam()

    def load(self) -> tuple[Any, dict[str, Any], Any]:
        """The frozen base; the splits with token ids; what makes a batch of their texts.

        Raises:
            DeepMLFError: the base cannot be loaded, or its tokenizer is of another one.
        """
        from deepmlf_llm.backbones import load_base_model, load_tokenizer
        from deepmlf_llm.backbones.vocabulary import check_text
        from deepmlf_llm.data.collate import Collator

        settings, name = self.settings, str(self.base_name)
        tokenizer = load_tokenizer(name, settings.revision)
        base = load_base_model(
            name,
            quantization=settings.quantization,
            dtype=settings.dtype,
            revision=settings.revision,
            num_layers=settings.num_layers,
        )
        text = settings.text(self.data.case)
        check_text(tokenizer, base, text, 0, name)
        splits = {name: tokenised(split, name, tokenizer, text) for name, split in self.data.splits().items()}
        return base, splits, Collator(tokenizer, {}, text.max_tokens, text.template)

    def ridge(self) -> tuple[Ridge, Arrays]:
        """The best ridge, and the states it was chosen among: split -> [poolings x layers x n x d]."""
        from deepmlf_llm.backbones import Decoder
        from deepmlf_llm.baselines.states import pooled_states

        base, splits, collate = self.load()
        device = "cuda" if torch.cuda.is_available() and self.settings.quantization == "none" else None
        decoder = Decoder(base if device is None else base.to(device))
        states = {name: pooled_states(decoder, split, collate) for name, split in splits.items()}
        return best_ridge(states, self.labels), states

    def lora_text(self) -> tuple[Arrays, dict[str, Any]]:
        """LoRA on every linear layer of the LM, and a head on its last token."""
        from peft import LoraConfig, get_peft_model

        from deepmlf_llm.baselines.fitting import fit
        from deepmlf_llm.baselines.regressors import TextRegressor

        base, splits, collate = self.load()
        settings = self.settings
        start = float(np.median(self.labels["train"]))

        def make() -> nn.Module:
            lora = LoraConfig(
                r=settings.lora_r,
                lora_alpha=settings.lora_alpha,
                lora_dropout=settings.lora_dropout,
                target_modules="all-linear",
            )
            return TextRegressor(get_peft_model(base, lora), start)

        fitted = fit(make, splits, collate, self.data.rules, settings)
        return fitted.predictions, dict(fitted.facts)

    def bam(self) -> tuple[Arrays, dict[str, Any]]:
        """An MLP on pooled features, added to the text state that ridge regression reads best."""
        from deepmlf_llm.baselines.fitting import fit
        from deepmlf_llm.baselines.regressors import PooledFusion

        modalities = chosen_modalities(self.settings.as_run(), self.data)
        if not modalities:
            raise ConfigError("--kind bam needs a modality, and there is none; lora_text and ridge read the text alone")
        dims = [int(facts["dim"]) for facts in modalities.values()]
        pooled = pooled_features(self.data, list(modalities), dims)
        ridge, states = self.ridge()
        text = _standardised({name: values[ridge.pooling, ridge.layer] for name, values in states.items()})
        width, start = text["train"].shape[1], float(np.median(self.labels["train"]))
        splits = {
            name: [
                {"text": t, "pooled": p, "labels": y}
                for t, p, y in zip(text[name], pooled[name], self.labels[name], strict=True)
            ]
            for name in text
        }
        settings = self.settings
        fitted = fit(
            lambda: PooledFusion(width, dims, settings.hidden, settings.modality_dropout, start),
            splits,
            _stacked,
            self.data.rules,
            settings,
        )
        return fitted.predictions, {**fitted.facts, "text_state": ridge.facts()}


def pooled_features(data: TrainingData, modalities: list[str], dims: list[int]) -> Arrays:
    """Split -> means over frames, standardised over the training utterances that have them, all modalities side by
    side [n x sum of dims]; 0 where absent."""
    found: dict[str, NDArray[np.float32]] = {}
    for name, split in data.splits().items():
        rows = np.full((len(split), sum(dims)), np.nan, np.float32)  # type: ignore[arg-type]
        for i in range(len(rows)):
            item, at = split[i], 0
            for modality, dim in zip(modalities, dims, strict=True):
                frames = item.get(modality)
                if frames is not None and len(frames):
                    rows[i, at : at + dim] = np.asarray(frames, np.float32).mean(axis=0)
                at += dim
        found[name] = rows
    return _standardised(found)


def _standardised(splits: Arrays) -> Arrays:
    """By mean and deviation of the training split; what is absent (NaN) becomes the mean, 0."""
    train = np.ma.masked_invalid(splits["train"].astype(np.float64))
    mean, std = train.mean(axis=0).filled(0.0), train.std(axis=0).filled(0.0)
    std = np.where(std > 1e-8 * np.maximum(1.0, np.abs(mean)), std, 1.0)
    return {name: np.nan_to_num((values - mean) / std).astype(np.float32) for name, values in splits.items()}


def _stacked(items: Any) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.stack([item[name] for item in items])) for name in items[0]}
