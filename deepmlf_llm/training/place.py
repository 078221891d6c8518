"""Where a run is or will be: the directory that was named, one after what it computes, or where it was begun before."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from deepmlf_llm.backbones import cpu_or_cuda_dtype
from deepmlf_llm.training.data import TrainingData
from deepmlf_llm.training.launch import Launch
from deepmlf_llm.training.run_directory import ORDER, RunDirectory
from deepmlf_llm.training.run_identity import identity
from deepmlf_llm.training.run_keys import AUTO
from deepmlf_llm.training.settings import RunSettings

RUNS = Path("runs")


def default_name(settings: RunSettings, base_name: str, data: TrainingData, fingerprint: str) -> str:
    """The default name of a run's directory: after its data, its base model, and all that it computes."""
    base = re.sub(r"[^A-Za-z0-9.]+", "-", Path(base_name).name)
    named = "embedded" if settings.data == "embedded" else str(data.facts.get("name", "data"))
    return f"{re.sub(r'[^A-Za-z0-9.]+', '-', named)}-{base}-{fingerprint[:8]}"


def place_of(
    settings: RunSettings,
    product: str,
    base_name: str,
    data: TrainingData,
    train_split: Any,
    launch: Launch,
    deepspeed: dict[str, Any] | None,
) -> tuple[RunSettings, RunDirectory]:
    """The directory of a run, and its settings; one of an earlier version is gone on with as it was begun.

    Args:
        settings: as they were given.
        product: name of what the run makes, in its directory.
        base_name: of the base model.
        data, train_split: what it learns from, and what of it.
        launch, deepspeed: how it was started.
    """
    processes = launch.processes
    facts = {"processes": processes, "base_model": base_name, "data": data.fingerprint, "deepspeed": deepspeed}
    name = identity(settings, processes, base_name, data.fingerprint)
    for understood, by_name in ((settings.of_first_runs(), False), (settings, False), (settings, True)):
        fingerprint = understood.fingerprint(processes, base_name, data.fingerprint)
        default = default_name(settings, base_name, data, name if by_name else fingerprint)
        path = Path(settings.output_dir or RUNS / default)
        directory = RunDirectory(path, understood.to_dict(), fingerprint, facts, product)
        if directory.holds_this_run():
            break
    understood.first_order = directory.order != ORDER
    steps = understood.planned_steps(len(train_split), processes).per_epoch
    directory.facts["step"] = {"utterances": understood.step_size(processes), "per_epoch": steps}
    directory.facts["dtype"] = base_dtype(understood, directory)
    return understood, directory


def base_dtype(settings: RunSettings, directory: RunDirectory) -> str:
    """The dtype of a run's base. ``auto`` is what suits this machine, or, in a run that goes on, the one that it began
    on."""
    if settings.dtype != AUTO:
        return settings.dtype
    if directory.holds_this_run() and not torch.cuda.is_available():
        return directory.fact("dtype") or "float32"  # before it was recorded, on a CPU
    return str(cpu_or_cuda_dtype(AUTO)).removeprefix("torch.")
