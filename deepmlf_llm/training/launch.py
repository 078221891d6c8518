"""How a run was started (``deepspeed``, ``torchrun``, plain ``python``), what each needs, and its orderly end."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from deepmlf_llm.errors import ConfigError, DeepMLFError


@dataclass(frozen=True)
class Launch:
    """This process among those of the run."""

    launcher: str  # "deepspeed", "torchrun" or "python"
    rank: int = 0
    local_rank: int = 0
    processes: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def detect() -> Launch:
    """Reads what a launcher left in the environment."""
    environment = os.environ
    if "WORLD_SIZE" not in environment or "RANK" not in environment:
        return Launch("python")
    return Launch(
        launcher="torchrun" if "TORCHELASTIC_RUN_ID" in environment else "deepspeed",
        rank=int(environment["RANK"]),
        local_rank=int(environment.get("LOCAL_RANK", 0)),
        processes=int(environment["WORLD_SIZE"]),
    )


def check_launcher() -> None:
    """Refuses a launcher that would choose the engine itself.

    Raises:
        ConfigError: ``accelerate launch`` with FSDP or DeepSpeed.
    """
    for variable, engine in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(variable, "false").lower() in ("1", "true", "yes"):
            raise ConfigError(
                f"{variable}={os.environ[variable]}: started by accelerate with {engine}. FSDP is not supported here, "
                "and DeepSpeed is asked for by --ds zero2; use torchrun, deepspeed, or accelerate without an engine"
            )


@contextmanager
def engine_of_this_run() -> Iterator[None]:
    """Takes back what transformers tells accelerate under ZeRO-3: a later run of this process chooses for itself."""
    before = os.environ.get("ACCELERATE_USE_DEEPSPEED")
    try:
        yield
    finally:
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
        if before is not None:
            os.environ["ACCELERATE_USE_DEEPSPEED"] = before


def pretend_world(processes: int) -> Launch:
    """Makes this process the first of so many that are not there: a process group whose operations do nothing.

    For a dry run: what depends on the number of processes is checked as it would be among them.
    """
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(alone, MASTER_PORT=str(free_port()))
    dist.init_process_group("fake", rank=0, world_size=processes, store=FakeStore())
    return Launch("python", processes=processes)


def prepare_environment(launch: Launch, with_deepspeed: bool) -> None:
    """What must hold before torch.distributed starts.

    Plain ``python`` under DeepSpeed gets the environment of a launcher with one process (DeepSpeed would ask for mpi4py
    else). On CPU, DeepSpeed's shared-memory op is switched off: it compiles for a minute, and needs a compiler.
    """
    import torch

    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it warns that it found nothing better
    if not with_deepspeed:
        return
    if launch.launcher == "python":
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        for name, value in alone.items():
            os.environ.setdefault(name, value)
        os.environ.setdefault("MASTER_PORT", str(free_port()))
    if on_cpu:
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def start_process_group(with_deepspeed: bool) -> None:
    """Under DeepSpeed: before the base model loads, so that ZeRO-3 can split it while it does."""
    if not with_deepspeed:
        return
    import deepspeed
    import torch

    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo")


def end_process_group() -> None:
    """All processes leave together; without it, the first to end can pull the others down."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def wait_for_everyone() -> None:
    """A barrier, where there is more than one process."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()


def say(message: str, launch: Launch | None = None) -> None:
    """One plain line on stdout, from the main process."""
    if (launch or detect()).is_main:
        print(message, flush=True)


@contextmanager
def progress_bar(
    total: int, what: str, launch: Launch, seconds: float = 30.0
) -> Iterator[Callable[[int], None] | None]:
    """A bar on a terminal, a plain line now and then elsewhere (:func:`pause`); from the main process. Yields what is
    to be called with how many more are done."""
    if not launch.is_main:
        yield None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=what, disable=not on_terminal()) as bar:
        done = 0
        began = shown = time.monotonic()

        def advance(count: int) -> None:
            nonlocal done, shown
            done += count
            bar.update(count)
            now = time.monotonic()
            if bar.disable and now - shown >= pause(now - began, seconds):
                shown = now
                print(f"{what}: {done} of {total}", flush=True)

        yield advance


def pause(elapsed: float, shortest: float, longest: float = 120.0) -> float:
    """Seconds between two lines of progress: half of the time that the work has taken, so that long work does not print
    hundreds of lines."""
    return min(max(elapsed / 2, shortest), max(shortest, longest))


def on_terminal() -> bool:
    """Whether a progress bar can be drawn."""
    return sys.stderr.isatty()


@contextmanager
def errors_reported_once() -> Iterator[None]:
    """Bad input meets every process: one of each machine says so, the others only if that does not end them."""
    try:
        yield
    except DeepMLFError:
        if detect().local_rank != 0:
            time.sleep(20)  # the launcher ends this process as soon as the first one has said it
        raise


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
