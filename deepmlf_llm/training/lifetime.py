"""A run from its launch to its orderly end, whatever it trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deepmlf_llm.errors import ConfigError
from deepmlf_llm.training import launch as launching
from deepmlf_llm.training.launch import Launch
from deepmlf_llm.training.settings import RunSettings
from deepmlf_llm.training.stopping import RunStopped, StopRequest
from deepmlf_llm.training.trainer_arguments import read_deepspeed, without_splitting


def carry_out(
    begin: Callable[[Launch, dict[str, Any] | None, StopRequest], Any],
    settings: RunSettings,
    dry_run: bool,
    world: int | None = None,
) -> dict[str, Any]:
    """Prepares this process, carries a run out or plans it, and leaves together with the other processes.

    Args:
        begin: makes the run, from the launch, the DeepSpeed configuration and what listens for signals.
        settings: the run's.
        dry_run: plan it only.
        world: plan it for so many processes, though this is one.

    Raises:
        DeepMLFError: the input is at fault.
        RunStopped: a signal asked for the end.
    """
    launching.check_launcher()
    if world is not None and (not dry_run or launching.detect().processes > 1):
        raise ConfigError(f"--world {world}: of a dry run in one process: add --dry-run, and start it with python")
    launch = launching.detect() if world is None else launching.pretend_world(world)
    deepspeed = read_deepspeed(settings)
    if world is not None:
        deepspeed = without_splitting(deepspeed)
    settings.resolve_batch(launch.processes)
    launching.prepare_environment(launch, deepspeed is not None)
    with StopRequest(launch) as stop, launching.engine_of_this_run():
        run = begin(launch, deepspeed, stop)
        try:
            result: dict[str, Any] = run.plan() if dry_run else run.result()
        except RunStopped as stopped:
            if run.has_stopped_together:
                launching.end_process_group()
            raise stopped from None
        launching.end_process_group()  # not after an error: the others may never come, and the launcher ends them
    return result
