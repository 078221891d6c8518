"""What this machine's CPU computes natively."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_NATIVE = frozenset(("amx_bf16", "avx512_bf16", "bf16"))
"""Flags of x86 (AMX, AVX512-BF16) and of ARM; elsewhere bf16 is several times slower than fp32."""


@cache
def computes_bfloat16() -> bool:
    """Whether matrix products in bf16 are faster here than in fp32: the CPU has instructions for them."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and has_bfloat16(cpuinfo.read_text(encoding="utf-8", errors="replace"))


def has_bfloat16(cpuinfo: str) -> bool:
    """The same, of what ``/proc/cpuinfo`` says."""
    lines = (line.lower() for line in cpuinfo.splitlines())
    flags = next((line for line in lines if line.startswith(("flags", "features"))), "")
    return bool(_NATIVE & set(flags.split()))
