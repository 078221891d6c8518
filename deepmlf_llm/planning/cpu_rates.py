"""What this machine's CPU does, measured in a few seconds: the numbers that the time of a step is told from.

Everything runs on the threads that torch has here (:func:`torch.get_num_threads`).
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from deepmlf_llm.extras import installed
from deepmlf_llm.planning.memory import Range
from deepmlf_llm.planning.operators import OperatorWork, Work
from deepmlf_llm.planning.resident import resident_bytes

_ROWS, _WIDTH, _WIDE = 320, 1024, 2048  # of the product that is timed: a small batch's tokens, a layer's widths
_BLOCK = 1 << 22  # elements of the tensors that are added: 16 MB each, more than a cache holds
_REPEATS = 7
_LOW, _HIGH = 0.65, 1.5  # of what is expected: all steps that were measured beside their plans lie between


@dataclass(frozen=True)
class CpuRates:
    """Of one machine, with so many threads.

    Args:
        threads: that compute.
        flops: a second, of products in 32 bits.
        narrow_flops: a second, of products in bf16.
        moved: bytes a second that an addition reads and writes, its result in new memory.
        operator: seconds of one operator on a few numbers, forward or backward, its module's Python included.
        unpacked: 4-bit weights a second that are made whole; 0: bitsandbytes is not installed.
        imported: resident bytes of a process that has imported what a run imports.
        process: of one that has computed as well.
    """

    threads: int
    flops: float
    narrow_flops: float
    moved: float
    operator: float
    unpacked: float
    imported: int
    process: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_cpu() -> CpuRates:
    """Takes a few seconds; on a machine that does other work the figures are that much lower."""
    imported = resident_bytes().now
    flops, narrow = (_products(dtype) for dtype in (torch.float32, torch.bfloat16))
    moved, operator = _additions(), _small_operators()
    process = resident_bytes().now
    unpacked = _unpacking()
    return CpuRates(torch.get_num_threads(), flops, narrow, moved, operator, unpacked, imported, process)


def step_seconds_on_cpu(work: Counter[Work], trained: int, rates: CpuRates, batches: int = 1) -> Range:
    """Of one step: every operator's product, its bytes and its own cost, one after another; and the update.

    Args:
        work: of a dry step's operators.
        trained: bytes of what is trained: AdamW reads four numbers an element and writes three.
        rates: of the machine.
        batches: accumulated.
    """
    update, seconds = 7 * trained / rates.moved, 0.0
    for one, count in work.items():
        product = one.flops / (rates.narrow_flops if one.narrow else rates.flops)
        whole = one.unpacked / rates.unpacked if one.unpacked and rates.unpacked else 0.0
        seconds += count * (product + whole + one.moved / rates.moved + rates.operator)
    seconds = batches * seconds + update
    return Range(_LOW * seconds, seconds, _HIGH * seconds)


def _products(dtype: torch.dtype) -> float:
    x, weight = torch.randn(_ROWS, _WIDTH).to(dtype), torch.randn(_WIDE, _WIDTH).to(dtype)
    return 2 * _ROWS * _WIDTH * _WIDE / _seconds(lambda: nn.functional.linear(x, weight), 20)


def _additions() -> float:
    x, y = torch.randn(_BLOCK), torch.randn(_BLOCK)
    return 3 * 4 * _BLOCK / _seconds(lambda: x + y, 2)


def _small_operators() -> float:
    layers = [nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.SiLU()) for _ in range(40)]
    model, x = nn.Sequential(*layers), torch.randn(2, 8)

    def step() -> None:
        model(x).sum().backward()
        model.zero_grad()

    with OperatorWork() as work:
        step()
    return _seconds(step, 3) / sum(work.seen.values())


def _unpacking() -> float:
    """In fp32, as bitsandbytes' layers do it; the first call, which may build something, is not timed."""
    if not installed("bitsandbytes"):
        return 0.0
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(torch.randn(_WIDE, _WIDTH), quant_type="nf4", compress_statistics=True)
    return _WIDE * _WIDTH / _seconds(lambda: dequantize_4bit(packed, state), 2)


def _seconds(run: Callable[[], Any], times: int) -> float:
    """Of one call: the median of several goes."""
    run()
    found = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        for _ in range(times):
            run()
        found.append((time.perf_counter() - began) / times)
    return statistics.median(found)
