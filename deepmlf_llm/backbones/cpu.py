"""What this machine's CPU offers: dtypes that it computes natively, threads for its cores."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import torch

from deepmlf_llm.cores import usable_cores
from deepmlf_llm.errors import BaseModelError

DTYPE_VARIABLE = "DEEPMLF_DTYPE"
"""Environment variable: what a base's dtype ``auto`` is on any machine, where the choice must not depend on it."""

_NATIVE = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "bf16": "bf16 instructions"}
"""Flags of x86 (AMX, AVX512-BF16) and of ARM; elsewhere bf16 is several times slower than fp32."""


@cache
def computes_bfloat16() -> bool:
    """Whether matrix products in bf16 are faster here than in fp32: the CPU has instructions for them."""
    return bfloat16_by(_cpuinfo()) is not None


def bfloat16_by(cpuinfo: str) -> str | None:
    """The best of these instructions, of what ``/proc/cpuinfo`` says; None without any."""
    lines = (line.lower() for line in cpuinfo.splitlines())
    flags = next((line for line in lines if line.startswith(("flags", "features"))), "")
    return next((name for flag, name in _NATIVE.items() if flag in flags.split()), None)


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def automatic_dtype() -> str:
    """What a base's dtype ``auto`` is on this machine: bf16 on CUDA and on a CPU that computes it natively, else fp32;
    or what ``$DEEPMLF_DTYPE`` says.

    Raises:
        BaseModelError: the variable holds neither name.
    """
    asked = os.environ.get(DTYPE_VARIABLE)
    if asked not in (None, "", "float32", "bfloat16"):
        raise BaseModelError(f"${DTYPE_VARIABLE}={asked!r}: expected 'float32' or 'bfloat16', or no such variable")
    return asked or ("bfloat16" if torch.cuda.is_available() or computes_bfloat16() else "float32")


def use_cores() -> int:
    """Has torch compute on no more threads than there are cores for, unless ``$OMP_NUM_THREADS`` says how many; returns
    their number."""
    if not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    return torch.get_num_threads()


def described(dtype: str | None, threads: int) -> str:
    """How a CPU is going to compute, in one line.

    Args:
        dtype: of the base's weights, by its name in torch; None: there is no base.
        threads: that compute.
    """
    computing = f"CPU: {threads} thread{'s' * (threads != 1)}"
    if dtype is None:
        return computing
    native = bfloat16_by(_cpuinfo())
    if dtype == "bfloat16":
        why = f", which this CPU computes natively ({native})" if native else ", which this CPU computes slowly"
    else:
        why = f" (this CPU computes bfloat16 natively, {native}: faster)" if native else ""
    return f"{computing}, base model in {dtype}{why}"
