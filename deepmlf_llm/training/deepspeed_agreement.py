"""What a DeepSpeed configuration whose keys are good says against the run's settings, or against itself."""

from __future__ import annotations

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
        if device == "nvme" and not zero[name].get("nvme_path"):
            problems.append(f"zero_optimization.{name}: device 'nvme' needs nvme_path")
    ratio = (zero.get("offload_optimizer") or {}).get("ratio", 1.0)
    if ratio < 1 and stage != 3:
        problems.append(f"zero_optimization.offload_optimizer.ratio={ratio} needs stage 3, not {stage}")
    if zero.get("compute_grad_norm") is False:
        problems.append("zero_optimization.compute_grad_norm: the norm of the gradient is clipped and logged here")
    return problems


def _enabled(config: Mapping[str, Any], section: str) -> bool:
    return config.get(section, {}).get("enabled") is True
