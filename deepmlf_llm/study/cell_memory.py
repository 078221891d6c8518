"""What each cell of a plan takes of a GPU, by the planner's dry step: without a GPU, without weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from deepmlf_llm.backbones import load_tokenizer
from deepmlf_llm.backbones.loading import DTYPES
from deepmlf_llm.backbones.shape import base_model_shape
from deepmlf_llm.fusion.verbalised import with_token_ids
from deepmlf_llm.model.peft_model import DeepMLFModel
from deepmlf_llm.planning.advice import Choice, Planner
from deepmlf_llm.planning.dry_step import Step
from deepmlf_llm.planning.memory import Layout
from deepmlf_llm.study.cells import PlannedCell
from deepmlf_llm.training.assemble import method_config, resolve_base_model
from deepmlf_llm.training.data import TrainingData, load_data, tokenised
from deepmlf_llm.training.settings import RunSettings


def memory_needs(cells: list[PlannedCell]) -> dict[str, int]:
    """Cell -> bytes of a GPU at most: the planner's high estimate, and a text cache that lies there whole.

    Args:
        cells: planned. Those of several processes, or under an engine, are left out: they share their GPUs with none.
    """
    found: dict[str, int] = {}
    known: dict[str, int] = {}
    data: dict[str, TrainingData] = {}
    for cell in cells:
        settings = RunSettings.from_dict(cell.settings, "settings")
        if cell.processes > 1 or settings.deepspeed:
            continue
        same = {n: v for n, v in settings.to_dict().items() if n not in ("seed", "data_seed", "data_fraction")}
        key = repr(sorted(same.items(), key=lambda item: item[0]))
        if key not in known:
            if settings.data not in data:
                data[settings.data] = load_data(settings)
            known[key] = _needed(settings, data[settings.data])
        found[cell.name] = known[key]
    return found


def _needed(settings: RunSettings, data: TrainingData) -> int:
    base = resolve_base_model(settings.base_model)
    tokenizer = load_tokenizer(base, settings.revision)
    config = with_token_ids(method_config(settings, data), tokenizer)
    utterances = settings.resolve_batch(1)[0]
    dtype = DTYPES[settings.dtype] if settings.dtype != "auto" else torch.bfloat16
    texts = tokenised(data.train, "train", tokenizer, config.text, data.rules).input_ids
    frames = dict.fromkeys(config.modalities, 1)
    for row in range(len(data.train)):  # type: ignore[arg-type]
        features = data.train[row]
        frames = {name: max(longest, len(features[name])) for name, longest in frames.items()}
    step = Step(
        utterances=utterances,
        text_tokens=max(map(len, texts)),
        frames=frames,
        autocast=bool(settings.trainer.get("bf16", True)),
        text_cached=settings.text_cache != "none",
        cache_dtype=settings.text_cache_dtype,
        accumulates=settings.resolve_batch(1)[1] > 1,
        granule=512,
    )
    choice = Choice(Layout(1), settings.quantization, bool(settings.trainer.get("gradient_checkpointing", False)))
    planner = Planner(_maker(settings, base, config), dtype, step, memory=float("inf"))
    total = planner.checked(choice, utterances)["total"].high
    splits = (data.train, data.valid, data.test)
    cached = planner.step_bytes(choice, utterances).text / utterances * sum(map(len, splits))  # type: ignore[arg-type]
    return int(total + cached)


def _maker(settings: RunSettings, base: str, config: Any) -> Callable[[], Any]:
    kernel = "eager" if settings.attn_implementation == "eager" else "sdpa"

    def make() -> Any:
        shape = base_model_shape(base, settings.num_layers, settings.revision)
        shape.set_attn_implementation(kernel)
        with torch.device("meta"):
            return DeepMLFModel(shape, config)

    return make
