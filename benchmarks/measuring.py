"""Time, memory, machine: what every benchmark measures in the same way."""

from __future__ import annotations

import json
import os
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from deepmlf_llm.backbones.smollm2 import SMOLLM2
from deepmlf_llm.commands.shell import RecipeParser
from deepmlf_llm.errors import RunError
from deepmlf_llm.files import write_aside
from deepmlf_llm.training.environment import environment as program_environment
from deepmlf_llm.training.environment import processor

LIVE_BLOCKS = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
"""Environment of a process whose memory is measured: glibc hands freed blocks of 1 MB and more straight back, so the
peak is what was alive at once and not what the allocator kept. It costs time, so no process that is timed has it."""


class Clock:
    """Collects the wall time of blocks: ``with clock: ...``."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __enter__(self) -> Clock:
        _wait_for_device()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *error: Any) -> None:
        _wait_for_device()
        self.seconds.append(time.perf_counter() - self._start)


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(run: Callable[[], Any], times: int, warm: int = 1) -> list[float]:
    """Seconds of each of so many calls, after ``warm`` that are not timed."""
    for _ in range(warm):
        run()
    clock = Clock()
    for _ in range(times):
        with clock:
            run()
    return clock.seconds


def seconds_of(run: Callable[[], Any], repeats: int) -> float:
    """Seconds of one call: of ``repeats`` in a row, the fastest of five goes."""

    def go() -> None:
        for _ in range(repeats):
            run()

    return min(timed(go, 5)) / repeats


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles (low, high), count and the values."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": median, "low": low, "high": high, "n": len(values), "values": list(values)}


def use_threads(count: int | None = None) -> None:
    """Compute threads of this process; default: ``OMP_NUM_THREADS`` where that is set, else one a core."""
    torch.set_num_threads(count or int(os.environ.get("OMP_NUM_THREADS", 0)) or len(os.sched_getaffinity(0)))


def in_own_process(
    function: Callable[..., Any], *args: Any, seconds: float | None = None, threads: int | None = None
) -> Any:
    """What a function returns in a process of its own; without CUDA a fork of one that has imported libraries, no more.

    Args:
        function: of a module; what it is given and returns is pickled.
        seconds: after which it is killed; default: never.
        threads: that compute there.

    Raises:
        RunError: it raised something (the message has its last line), crashed, or ran out of time.
    """
    # Libraries ask for devices as they are imported, and a process that is forked after that cannot use CUDA.
    context = get_context("spawn" if torch.cuda.is_available() else "forkserver")
    context.set_forkserver_preload(["deepmlf_llm.model"])  # what takes long; __main__ itself fails before Python 3.12.8
    os.environ.update(LIVE_BLOCKS)  # read when a process starts, so not by this one
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(there, threads, function, args))
    process.start()
    there.close()
    if not here.poll(seconds):
        process.kill()
        raise RunError(f"ran past {seconds:.0f} s and was killed")
    try:
        done, answer = here.recv()
    except EOFError:
        process.join()
        raise RunError(f"its process ended by itself, exit code {process.exitcode}") from None
    process.join()
    if not done:
        raise RunError(answer)
    return answer


def _answer(pipe: Any, threads: int | None, function: Callable[..., Any], args: Sequence[Any]) -> None:
    use_threads(threads)
    try:
        pipe.send((True, function(*args)))
    except Exception as error:
        pipe.send((False, f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"))


def benchmark_parser(description: str, bases: bool = True) -> RecipeParser:
    """A parser with what benchmarks share; ``bases``: also of those that take one base model, or a toy."""
    parser = RecipeParser(description=description)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--threads", type=int, help="compute threads; default: OMP_NUM_THREADS or one a core")
    if bases:
        parser.add_argument("--quick", action="store_true", help="toy sizes, to try the command: figures mean nothing")
        parser.add_argument("--base_model", help=f"a LLaMA-class model; default: {SMOLLM2} (--quick: tiny-llama)")
    return parser


def base_of(args: Namespace) -> str:
    """The base model that was asked for."""
    return args.base_model or ("tiny-llama" if args.quick else SMOLLM2)


def environment() -> dict[str, Any]:
    """Versions, commit, machine class, threads."""
    return {**program_environment(), "cpu": processor(), "threads": torch.get_num_threads()}


def write_json(path: Path | None, result: Any) -> None:
    """Writes aside, then renames; nothing without a path."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_aside(path, json.dumps(result, indent=2) + "\n")


def operations(run: Callable[[], Any], most: int = 12) -> dict[str, float]:
    """Seconds spent in each operator itself, the dearest first, by PyTorch's profiler; on a GPU its own seconds."""
    with torch.profiler.profile() as profiler:
        run()
    clock = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    totals = {event.key: getattr(event, clock) / 1e6 for event in profiler.key_averages()}
    return dict(sorted(totals.items(), key=lambda item: -item[1])[:most])
