"""What a DeepSpeed configuration whose keys are good says against the run's settings, or against itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from deepmlf_llm.training.deepspeed_schema import AUTO


def contradictions(
    config: Mapping[str, Any], batch: Mapping[str, tuple[int, str]], max_grad_norm: Any, bf16: bool
) -> list[str]:
    """One phrase for each thing that cannot hold together.

    Args:
        config: the DeepSpeed configuration.
        batch: its batch keys -> (what the settings make of it, how).
        max_grad_norm: of the run.
        bf16: whether the run computes in bf16.
    """
    problems = []
    for key, (expected, how) in batch.items():
        if config.get(key, AUTO) not in (AUTO, expected):
            problems.append(f"{key}={config[key]}, but {how} makes {expected}: say 'auto', or change the settings")
    clipping = config.get("gradient_clipping", AUTO)
    if clipping not in (AUTO, max_grad_norm):
        problems.append(f"gradient_clipping={clipping}, but max_grad_norm={max_grad_norm}: say 'auto'")
    if _enabled(config, "fp16"):
        problems.append("fp16.enabled: fp16 is not trained in here; say 'auto' or false, and --bf16 true for bf16")
    if _enabled(config, "bf16"):
        problems.append(
            "bf16.enabled: DeepSpeed's own bf16 would round the trained weights; say 'auto', and --bf16 true computes "
            "in bf16 over fp32 weights"
        )
    autocast = config.get("torch_autocast", {})
    if _enabled(config, "torch_autocast") and (not bf16 or autocast.get("dtype", "bf16") not in ("bf16", "bfloat16")):
        problems.append("torch_autocast: take it out; --bf16 true computes in bf16 so")
    return problems + _zero_contradictions(config.get("zero_optimization", {}))


def _zero_contradictions(zero: Mapping[str, Any]) -> list[str]:
    stage, problems = zero.get("stage", 0), []
    devices = {name: (zero.get(name) or {}).get("device", "none") for name in ("offload_param", "offload_optimizer")}
    if devices["offload_param"] != "none" and stage != 3:
        problems.append(f"zero_optimization.offload_param needs stage 3, not {stage}: take it out, or say --ds zero3")
    if devices["offload_optimizer"] != "none" and stage == 0:
        problems.append("zero_optimization.offload_optimizer needs stage 1, 2 or 3")
    for name, device in devices.items():
        if device == "nvme":
            problems += _nvme_problems(name, zero[name].get("nvme_path"), stage)
    ratio = (zero.get("offload_optimizer") or {}).get("ratio", 1.0)
    if ratio < 1 and stage != 3:
        problems.append(f"zero_optimization.offload_optimizer.ratio={ratio} needs stage 3, not {stage}")
    if zero.get("compute_grad_norm") is False:
        problems.append("zero_optimization.compute_grad_norm: the norm of the gradient is clipped and logged here")
    return problems


def _nvme_problems(name: str, path: str | None, stage: int) -> list[str]:
    section = f"zero_optimization.{name}"
    if not path:
        return [f"{section}: device 'nvme' needs nvme_path"]
    if stage != 3:
        return [f"{section}: device 'nvme' needs stage 3, not {stage}; say 'cpu', or --ds zero3_nvme"]
    if not os.path.isdir(path) or not os.access(path, os.W_OK):
        return [
            f"{section}.nvme_path={path}: no directory that can be written to; copy the file, and name one on the NVMe "
            "disk of every machine"
        ]
    return []


def async_io_problem(config: Mapping[str, Any]) -> str | None:
    """Why DeepSpeed cannot read and write an NVMe disk here, where the configuration asks for it."""
    zero = config.get("zero_optimization", {})
    if not any((zero.get(name) or {}).get("device") == "nvme" for name in ("offload_param", "offload_optimizer")):
        return None
    from deepspeed.accelerator import get_accelerator

    builder = get_accelerator().create_op_builder("AsyncIOBuilder")
    if builder is not None and builder.is_compatible(verbose=False):
        return None
    return (
        "device 'nvme' needs DeepSpeed's async_io, which cannot be built here: it takes a compiler and libaio "
        "(apt install libaio-dev); say 'cpu', or --ds zero3_offload"
    )


def _enabled(config: Mapping[str, Any], section: str) -> bool:
    return config.get(section, {}).get("enabled") is True
