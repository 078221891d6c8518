"""What a run says of itself, as it begins and at its end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from deepmlf_llm.backbones import cpu
from deepmlf_llm.errors import RunError
from deepmlf_llm.paths import shown
from deepmlf_llm.statistics.bootstrap import described
from deepmlf_llm.training.callbacks import gate_values
from deepmlf_llm.training.environment import parameter_counts, parameter_table, peak_memory_mb
from deepmlf_llm.training.launch import Launch
from deepmlf_llm.training.scores import Score


def opening_lines(model: Any, arguments: Any, launch: Launch, run: Path, step_size: int) -> str:
    """What is about to be trained: where, the parts of the model, the batches."""
    lines = [f"run: {shown(run)}  ({launch.launcher}, {launch.processes} processes)"]
    for row in parameter_table(model):
        state = "trained" if row["trainable"] else "frozen"
        lines.append(f"  {row['part']:<12}{row['parameters']:>14,} {row['dtype']:<9} {state:<8}{row['mb']:>10} MB")
    if arguments.device.type == "cpu":
        fingerprint = model.deepmlf_config.base_fingerprint  # none of an AV encoder that learns alone
        dtype = None if fingerprint is None else fingerprint.get("stored", "float32")
        lines.append(cpu.described(dtype, torch.get_num_threads()))
    lines.append(
        f"batch: {arguments.per_device_train_batch_size} x {launch.processes} processes x "
        f"{arguments.gradient_accumulation_steps} accumulated = {step_size} utterances a step"
    )
    return "\n".join(lines)


def train_facts(trainer: Any, output: Any, began: float, launch: Launch, step_size: int) -> dict[str, Any]:
    """``train`` of ``result.json``.

    Args:
        trainer: after its training.
        output: of it.
        began: when the run was started, by the monotonic clock.
        launch: how.
        step_size: utterances a step, over all processes.
    """
    return {
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "best_step": trainer.state.best_global_step,
        **({"skipped_steps": trainer.finite.skipped} if trainer.finite.skipped else {}),
        "seconds": round(output.metrics.get("train_runtime", 0.0), 1),
        "total_seconds": round(time.monotonic() - began, 1),
        "steps_per_second": output.metrics.get("train_steps_per_second"),
        "utterances_per_step": step_size,
        "launcher": launch.launcher,
        "processes": launch.processes,
        "parameters": parameter_counts(trainer.model),
        "peak_memory_mb": peak_memory_mb(),
    }


def fusion_facts(model: Any) -> dict[str, Any]:
    """What ``train`` of ``result.json`` says of the MM Blocks."""
    return {"fusion_layers": model.active_stack.layers, "gates": gate_values(model)}


def measured(validation: Score, test: Score) -> dict[str, Any]:
    """Both splits in ``result.json``: ``metrics``, ``intervals`` (made as ``bootstrap`` says), ``heads``; of classes
    ``classes``, their table and confusion."""
    splits = {"validation": validation, "test": test}
    classes = {name: dict(score.classes) for name, score in splits.items() if score.classes is not None}
    return {
        "metrics": {name: dict(score.metrics) for name, score in splits.items()},
        "intervals": {name: dict(score.intervals) for name, score in splits.items()},
        "bootstrap": described(),
        "heads": {name: dict(score.heads) for name, score in splits.items()},
        **({"classes": classes} if classes else {}),
    }


def check_best(trainer: Any, found: Mapping[str, float]) -> None:
    """Whether the adapter that is about to be written is the one that was selected.

    Raises:
        RunError: it gives another value of the metric than in training.
    """
    name = trainer.args.metric_for_best_model.removeprefix("eval_")
    if name in found and abs(found[name] - trainer.state.best_metric) > 1e-2:
        raise RunError(
            f"the best adapter gave {name} {trainer.state.best_metric:.4f} in training and gives {found[name]:.4f} "
            "now: it was not restored"
        )
