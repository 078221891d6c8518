"""Model FLOPs utilization (MFU) of a run: FLOPs that its steps need over what its GPUs can do (arXiv 2204.02311, B)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from deepmlf_llm.planning.flops import StepGeometry, step_flops
from deepmlf_llm.planning.geometries import planned_shape
from deepmlf_llm.planning.rates import PEAK_TFLOPS
from deepmlf_llm.training.trainer_arguments import zero_stage

if TYPE_CHECKING:
    from deepmlf_llm.training.launch import Launch
    from deepmlf_llm.training.settings import RunSettings

_LOOKED_AT = 64  # utterances whose frames are counted
_SLOWER = re.compile(r"h100.*(pcie|nvl)")  # of the name, and not of the rate


def peak_flops(gpu: str) -> float | None:
    """FLOP/s of a GPU by its name, dense bf16; None: not known.

    Args:
        gpu: as CUDA gives it, such as ``"NVIDIA H100 80GB HBM3"``.
    """
    name = gpu.lower().replace("rtx ", "rtx")
    if _SLOWER.search(name):
        return None
    return next((1e12 * rate for key, rate in PEAK_TFLOPS.items() if re.search(rf"\b{key}\b", name)), None)


def mfu_per_speed(
    settings: RunSettings, config: Any, train: Any, launch: Launch, deepspeed: dict[str, Any] | None
) -> float:
    """MFU of a run that makes one step a second; 0: not known here.

    Args:
        settings: of the run.
        config: of the method.
        train: the training split, with token ids.
        launch: how many processes there are; the first one shows it.
        deepspeed: its configuration. Under ZeRO-3 a model without weights cannot be made.
    """
    peak = peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() and launch.is_main else None
    if peak is None or zero_stage(deepspeed) == 3:
        return 0.0
    from deepmlf_llm.model.peft_model import DeepMLFModel
    from deepmlf_llm.training.assemble import resolve_base_model

    shape = planned_shape(resolve_base_model(settings.base_model), settings.num_layers, settings.revision)
    with torch.device("meta"):
        model = DeepMLFModel(shape, config)
    geometry = typical_step(train, list(config.modalities), settings.step_size(launch.processes))
    return step_flops(model, geometry, settings.text_cache != "none") / (peak * launch.processes)


def typical_step(train: Any, modalities: Sequence[str], utterances: int) -> StepGeometry:
    """Mean lengths of a split's texts, and of its frames by some of its utterances.

    Args:
        train: the split, with token ids.
        modalities: names.
        utterances: of a step.
    """
    texts = round(fmean(len(ids) for ids in train.input_ids))
    some = [train[row] for row in range(0, len(train), max(1, len(train) // _LOOKED_AT))]
    frames = {name: round(fmean(max(1, len(utterance[name])) for utterance in some)) for name in modalities}
    return StepGeometry(utterances, texts, frames)
