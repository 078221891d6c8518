"""Time, memory, machine: what every benchmark measures in the same way."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from deepmlf_llm.files import write_aside
from deepmlf_llm.training.environment import environment as program_environment

LIVE_BLOCKS = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
"""Environment of a process whose memory is measured: glibc hands freed blocks of 1 MB and more straight back, so the
peak is what was alive at once and not what the allocator kept. It costs time, so no process that is timed has it."""


class Clock:
    """Collects the wall time of blocks, and how much of it the kernel took (page faults of fresh memory, mostly).

    >>> clock = Clock()
    >>> with clock:
    ...     pass
    >>> len(clock.seconds)
    1
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.kernel_seconds: list[float] = []

    def __enter__(self) -> Clock:
        _wait_for_device()
        self._start = time.perf_counter(), _kernel_seconds()
        return self

    def __exit__(self, *error: Any) -> None:
        _wait_for_device()
        wall, kernel = self._start
        self.seconds.append(time.perf_counter() - wall)
        self.kernel_seconds.append(_kernel_seconds() - kernel)


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _kernel_seconds() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_stime


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles (low, high), count and the values."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": median, "low": low, "high": high, "n": len(values), "values": list(values)}


def peak_memory() -> int:
    """Largest resident set of this process so far, in bytes: all of it, interpreter and libraries included.

    Linux: VmHWM, which starts afresh with each program (``ru_maxrss`` of a child starts at its parent's).
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def use_threads(count: int | None = None) -> None:
    """Compute threads of this process; default: ``OMP_NUM_THREADS`` where that is set, else one a core."""
    torch.set_num_threads(count or int(os.environ.get("OMP_NUM_THREADS", 0)) or len(os.sched_getaffinity(0)))


def environment() -> dict[str, Any]:
    """Versions, commit, machine class, threads."""
    return {**program_environment(), "cpu": _cpu_class(), "threads": torch.get_num_threads()}


def _cpu_class() -> str:
    """The processor's name as it gives it, without anything about this one machine."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def print_markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A Markdown table on stdout."""
    for cells in [columns, ["---"] * len(columns), *rows]:
        print("| " + " | ".join(str(cell) for cell in cells) + " |")


def print_machine(machine: dict[str, Any]) -> None:
    """A line under a table: where :func:`environment` was taken."""
    print(f"\nMachine: {machine['cpu']}, {machine['threads']} threads, torch {machine['packages']['torch']}.")


def write_json(path: Path, result: Any) -> None:
    """Writes aside, then renames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path, json.dumps(result, indent=2) + "\n")


def operations(run: Callable[[], Any], most: int = 12) -> dict[str, float]:
    """Seconds spent in each operator itself, the dearest first, by PyTorch's profiler; on a GPU its own seconds."""
    with torch.profiler.profile() as profiler:
        run()
    clock = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    totals = {event.key: getattr(event, clock) / 1e6 for event in profiler.key_averages()}
    return dict(sorted(totals.items(), key=lambda item: -item[1])[:most])
