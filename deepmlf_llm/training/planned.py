"""A run as the planner sees it: the lengths of its batches, and its model without weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from deepmlf_llm.backbones.smollm2 import SMOLLM2, smollm2_available
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.planning.advice import Planner
from deepmlf_llm.planning.cpu_rates import CpuRates, measure_cpu
from deepmlf_llm.planning.dry_step import Step
from deepmlf_llm.planning.geometries import GEOMETRIES, planned_shape
from deepmlf_llm.planning.resident import Host, Loading, loading_of

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
    settings: RunSettings,
    config: DeepMLFConfig,
    lengths: Lengths,
    processes: int,
    memory: float,
    on_gpu: bool = True,
    host: Host | None = None,
) -> Planner:
    """Plans of a run on GPUs, or on a CPU.

    Args:
        settings: of the run.
        config: of the method, complete.
        lengths: of a batch.
        processes: one a GPU.
        memory: of a GPU, bytes.
        on_gpu: False: processes on a CPU, whose memory is one.
        host: what each takes there beside tensors; None: nothing.
    """
    from deepmlf_llm.backbones.loading import DTYPES, cpu_or_cuda_dtype
    from deepmlf_llm.model.peft_model import DeepMLFModel
    from deepmlf_llm.training.assemble import resolve_base_model

    base = resolve_base_model(settings.base_model)
    automatic = torch.bfloat16 if on_gpu else cpu_or_cuda_dtype()
    dtype = automatic if settings.dtype == "auto" else DTYPES[settings.dtype]

    def make() -> Any:
        shape = planned_shape(base, settings.num_layers, settings.revision)
        shape.set_attn_implementation(planned_kernel(shape, settings.attn_implementation, dtype, on_gpu))
        with torch.device("meta"):
            return DeepMLFModel(shape, config)

    per_device, accumulated = settings.resolve_batch(processes)
    step = Step(
        utterances=per_device,
        text_tokens=lengths.text_tokens,
        frames={name: count for name, (count, _) in lengths.frames.items()},
        autocast=bool(settings.trainer.get("bf16", on_gpu)),
        text_cached=settings.text_cache != "none",
        cache_dtype=settings.text_cache_dtype,
        accumulates=accumulated > 1,
        granule=CUDA_BLOCK if on_gpu else 1,
        on_cpu=not on_gpu,
        notes_work=not on_gpu,
    )
    return Planner(make, dtype, step, memory, on_gpu, host)


def planned_kernel(shape: Any, asked: str, dtype: torch.dtype, on_gpu: bool) -> str:
    """The attention kernel that a run takes; for those that need a GPU and rows without padding, sdpa.

    Args:
        shape: the decoder, without weights.
        asked: ``attn_implementation`` of the run.
        dtype: of the frozen base.
        on_gpu: a GPU will compute.
    """
    from deepmlf_llm.backbones.loading import PREFIX, family_kernel

    slow = asked == "auto" and not on_gpu and dtype != torch.float32
    kernel = "eager" if slow else asked if asked in ("eager", PREFIX) else "sdpa"
    return family_kernel(shape, asked, kernel, on_cpu=not on_gpu)


def run_host(settings: RunSettings) -> tuple[CpuRates, Host]:
    """This machine's CPU, measured, and what a process of the run takes on it beside tensors."""
    import deepmlf_llm.training.run  # noqa: F401 - what a run imports is part of that
    from deepmlf_llm.backbones.loading import DTYPES, base_source, cpu_or_cuda_dtype
    from deepmlf_llm.backbones.toys import TOYS
    from deepmlf_llm.training.assemble import resolve_base_model

    rates, base = measure_cpu(), resolve_base_model(settings.base_model)
    dtype = cpu_or_cuda_dtype() if settings.dtype == "auto" else DTYPES[settings.dtype]
    on_paper = base in GEOMETRIES and not (base == SMOLLM2 and smollm2_available())
    drawn = base in TOYS or settings.lm_init == "random"
    directory = None if drawn or on_paper else Path(base_source(base))
    if directory is not None and not directory.is_dir():
        directory = None  # a hub's, not here yet

    def loading(quantization: str) -> Loading:
        whole = planned_shape(base, None, settings.revision)
        kept = planned_shape(base, settings.num_layers, settings.revision)
        return loading_of(whole, kept, dtype, directory, drawn, quantization != "none")

    return rates, Host(rates.imported, rates.process, loading)
