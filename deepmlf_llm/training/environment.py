"""What a result must say about where it came from: versions, code, machine class, parameters, memory. No paths."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

import deepmlf_llm
from deepmlf_llm.backbones.quantization import is_packed
from deepmlf_llm.cores import usable_cores

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "deepspeed",
    "bitsandbytes",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
)
_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def environment() -> dict[str, Any]:
    """Versions, code state and machine class."""
    return {
        "python": platform.python_version(),
        "deepmlf_llm": deepmlf_llm.__version__,
        "packages": {name: _version(name) for name in PACKAGES if _version(name)},
        "git": git_state(),
        "machine": machine(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_state() -> dict[str, Any] | None:
    """Commit of the checkout this package runs from, and whether files differ from it; None outside a checkout."""
    root = Path(deepmlf_llm.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return {"commit": commit, "modified": bool(_git(root, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *words: str) -> str:
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(root), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


def machine() -> dict[str, Any]:
    """Cores, memory, what the CPU can, GPUs."""
    facts: dict[str, Any] = {"system": platform.system(), "architecture": platform.machine(), "cpus": usable_cores()}
    flags = _cpuinfo("flags")
    if flags is not None:
        facts["cpu_flags"] = [flag for flag in _CPU_FLAGS if flag in flags.split()]
    facts["memory_gb"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9)
    facts["threads"] = torch.get_num_threads()
    if torch.cuda.is_available():
        names = Counter(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        facts["gpus"] = dict(names)
        facts["cuda"] = torch.version.cuda
    return facts


def processor() -> str:
    """The CPU's name as it gives it, without anything about this one machine."""
    return _cpuinfo("model name") or platform.machine()


def _cpuinfo(field: str) -> str | None:
    """What Linux says of the first core, empty where it lacks the field; None on other systems."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return None
    lines = cpuinfo.read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def peak_memory_mb() -> dict[str, float]:
    """Largest memory of any process of this run: resident, and on the GPU."""
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20]
    if torch.cuda.is_available():
        peaks.append(torch.cuda.max_memory_allocated() / 2**20)
    values = torch.tensor(peaks, dtype=torch.float64)
    if torch.distributed.is_initialized():
        values = values.cuda() if torch.distributed.get_backend() == "nccl" else values
        torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX)
    return dict(zip(("resident", "gpu"), (round(v, 1) for v in values.tolist()), strict=False))


def parameter_table(model: Any) -> list[dict[str, Any]]:
    """Rows of part, parameters, trainable, dtype, memory in MB: the frozen base, then each trainable group."""
    rows = []
    trainable = {id(p): group for group, members in model.parameter_groups().items() for _, p in members}
    parts: dict[tuple[str, str], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        part = trainable.get(id(parameter), "frozen")
        parts.setdefault((part, str(parameter.dtype).removeprefix("torch.")), []).append(parameter)
    for (part, dtype), members in parts.items():
        rows.append(
            {
                "part": part,
                "parameters": sum(_count(p) for p in members),
                "trainable": part != "frozen",
                "dtype": "4-bit" if any(is_packed(p) for p in members) else dtype,
                "mb": round(sum(_held(p) * p.element_size() for p in members) / 2**20, 2),
            }
        )
    return rows


def parameter_counts(model: Any) -> dict[str, int]:
    """``{"trainable", "total"}``."""
    rows = parameter_table(model)
    trainable = sum(row["parameters"] for row in rows if row["trainable"])
    return {"trainable": trainable, "total": sum(row["parameters"] for row in rows)}


def _held(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _count(parameter: nn.Parameter) -> int:
    if not is_packed(parameter):
        return _held(parameter)
    return _held(parameter) * 2 * parameter.element_size()  # two values a byte of storage
