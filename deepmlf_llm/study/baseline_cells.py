"""Cells of a study that fit a baseline in the place of a run: what has to be beaten, on the same splits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from deepmlf_llm import baselines
from deepmlf_llm.backbones import load_tokenizer
from deepmlf_llm.baselines.settings import BaselineSettings
from deepmlf_llm.study.code_version import digest_of
from deepmlf_llm.training.data import TrainingData, tokenised, training_split

_SHARED = ("data", "data_fraction", "base_model", "revision", "num_layers", "quantization", "dtype", "seed")
_OF_TEXT = ("max_tokens", "template")
_HEARD = "modalities"  # of the one baseline that hears
KEPT = ("baseline", *_SHARED, _HEARD, *(f"text.{name}" for name in _OF_TEXT))
"""Settings of a cell that a baseline reads."""


def baseline_settings(given: Mapping[str, Any]) -> BaselineSettings:
    """Of a cell's settings those that a baseline has too; the rest are its defaults.

    Raises:
        ConfigError: out of range.
    """
    named = {name: given[name] for name in _SHARED if name in given}
    named |= {name: given[f"text.{name}"] for name in _OF_TEXT if f"text.{name}" in given}
    if given["baseline"] == "bam" and (heard := given.get(_HEARD)) is not None:
        named[_HEARD] = [heard] if isinstance(heard, str) else heard
    return BaselineSettings(kind=given["baseline"], **named)


def baseline_words(given: Mapping[str, Any], output: Path) -> list[str]:
    """Options of the recipe that fits it."""
    settings = dataclasses.replace(baseline_settings(given), output_dir=str(output))
    fields = {field.name: field.default for field in dataclasses.fields(settings)}
    changed = {name: value for name, value in settings.to_dict().items() if value != fields[name]}
    several = {name: value if isinstance(value, list) else [value] for name, value in changed.items()}
    return [word for name, values in several.items() for word in (f"--{name}", *map(str, values))]


def baseline_code() -> str:
    """Version of what fits baselines; a run's code does not count it."""
    return digest_of(sorted(Path(baselines.__file__).parent.glob("*.py")))


def baseline_size(settings: BaselineSettings, shape: Any, data: TrainingData) -> dict[str, Any]:
    """Parameters and FLOPs, as far as they can be said: of a step of ``lora_text``, matrix products with frozen
    weights, forward and backward; nothing is trained by steps otherwise.

    Args:
        settings: of the baseline.
        shape: of its base model, on the meta device; changed here.
        data: the splits.
    """
    import torch

    total = sum(p.numel() for p in shape.parameters())
    rows = len(training_split(settings.as_run(), data))  # type: ignore[arg-type]
    utterances = min(settings.batch_size, rows)
    text = settings.text(data.case)
    tokenizer = load_tokenizer(settings.base_model, settings.revision)
    tokens = round(median(map(len, tokenised(data.train, "train", tokenizer, text).input_ids)))
    found = {"trainable": 0, "total": total, "step_flops": 0, "steps": 0}
    if settings.kind == "lora_text":
        from peft import LoraConfig, get_peft_model

        from deepmlf_llm.baselines.regressors import TextRegressor

        matrices = sum(m.weight.numel() for m in shape.base_model.modules() if isinstance(m, torch.nn.Linear))
        with torch.device("meta"):
            model = TextRegressor(
                get_peft_model(shape, LoraConfig(r=settings.lora_r, target_modules="all-linear")), 0.0
            )
        found["trainable"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        found["total"] = total + found["trainable"]
        found["step_flops"] = 4 * matrices * tokens * utterances
        found["steps"] = settings.num_train_epochs * math.ceil(rows / settings.batch_size)
    return {**found, "geometry": {"utterances": utterances, "text_tokens": tokens, "frames": {}}}
