"""A run as the planner sees it: the lengths of its batches, and its model without weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.planning.advice import Planner
from deepmlf_llm.planning.dry_step import Step
from deepmlf_llm.planning.geometries import planned_shape

if TYPE_CHECKING:
    from deepmlf_llm.training.data import TrainingData
    from deepmlf_llm.training.settings import RunSettings

CUDA_BLOCK = 512  # bytes: the smallest that PyTorch's allocator hands out on a GPU


@dataclass(frozen=True)
class Lengths:
    """Of a batch: text tokens, and modality -> (frames, width)."""

    text_tokens: int
    frames: dict[str, tuple[int, int]]


def method_and_lengths(settings: RunSettings, data: TrainingData) -> tuple[DeepMLFConfig, Lengths]:
    """The method's settings, completed by the data, and the longest text and frames of its training split."""
    from deepmlf_llm.backbones import load_tokenizer
    from deepmlf_llm.fusion.verbalised import with_token_ids
    from deepmlf_llm.training.assemble import method_config, resolve_base_model
    from deepmlf_llm.training.data import tokenised

    config = method_config(settings, data)
    tokenizer = load_tokenizer(resolve_base_model(settings.base_model), settings.revision)
    texts = tokenised(data.train, "train", tokenizer, config.text, data.rules).input_ids
    longest = dict.fromkeys(config.modalities, 1)
    for row in range(len(data.train)):  # type: ignore[arg-type]
        utterance = data.train[row]
        longest = {name: max(frames, len(utterance[name])) for name, frames in longest.items()}
    frames = {name: (longest[name], modality.dim) for name, modality in config.modalities.items()}
    return with_token_ids(config, tokenizer), Lengths(max(map(len, texts)), frames)


def run_planner(
    settings: RunSettings, config: DeepMLFConfig, lengths: Lengths, processes: int, memory: float
) -> Planner:
    """Plans of a run on GPUs.

    Args:
        settings: of the run.
        config: of the method, complete.
        lengths: of a batch.
        processes: one a GPU.
        memory: of a GPU, bytes.
    """
    from deepmlf_llm.backbones.loading import DTYPES
    from deepmlf_llm.model.peft_model import DeepMLFModel
    from deepmlf_llm.training.assemble import resolve_base_model

    base = resolve_base_model(settings.base_model)
    dtype = DTYPES[settings.dtype] if settings.dtype != "auto" else torch.bfloat16
    kernel = "eager" if settings.attn_implementation == "eager" else "sdpa"

    def make() -> Any:
        shape = planned_shape(base, settings.num_layers, settings.revision)
        shape.set_attn_implementation(kernel)
        with torch.device("meta"):
            return DeepMLFModel(shape, config)

    per_device, accumulated = settings.resolve_batch(processes)
    step = Step(
        utterances=per_device,
        text_tokens=lengths.text_tokens,
        frames={name: count for name, (count, _) in lengths.frames.items()},
        autocast=bool(settings.trainer.get("bf16", True)),
        text_cached=settings.text_cache != "none",
        cache_dtype=settings.text_cache_dtype,
        accumulates=accumulated > 1,
        granule=CUDA_BLOCK,
    )
    return Planner(make, dtype, step, memory)
