"""What happens beside the training: the log, early stopping."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from deepmlf_llm.files import write_aside, writing
from deepmlf_llm.training.metrics_log import METRICS_FILE, finite, read_metrics
from deepmlf_llm.training.run_directory import RunDirectory

_EVALUATION = "eval_"


def is_evaluation(logs: Mapping[str, Any]) -> bool:
    """Whether an entry of the log is of an evaluation in training; those at the end have other names."""
    return any(name.startswith(_EVALUATION) for name in logs)


class RunIsOver(Exception):
    """Raised before an epoch that an uninterrupted run would not have begun."""


class Begun(TrainerCallback):
    """After its first step a run has its directory for good."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.directory.begin()


class AfterEachStep(TrainerCallback):
    """Does something after each update of the weights, before anything is evaluated or saved."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.action = action

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.action()


class MetricsLog(TrainerCallback):
    """``metrics.jsonl``: one JSON object a line, ``{"kind": "train" | "validation" | "gates", "step", ...}``.

    A resumed run first drops the lines after its checkpoint, so the file reads as if nothing had happened.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / METRICS_FILE

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            kept = [line for line in read_metrics(self.path) if line["step"] <= state.global_step]
            write_aside(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or logs is None:
            return
        if "loss" in logs:
            self._write("train", state, logs)
        elif is_evaluation(logs):
            values = {name.removeprefix(_EVALUATION): value for name, value in logs.items()}
            self._write("validation", state, values)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, model: Any = None, **_: Any
    ) -> None:
        if is_evaluation(metrics or {}):
            gates = gate_values(model)  # on every process: ZeRO-3 may have split them
            if state.is_world_process_zero and gates:
                self._write("gates", state, gates)

    def _write(self, kind: str, state: Any, values: dict[str, Any]) -> None:
        line = {"kind": kind, "step": state.global_step, **{name: finite(value) for name, value in values.items()}}
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")


def gate_values(model: Any) -> dict[str, dict[str, float]]:
    """Gate factors by LM layer, wherever the engine keeps them."""
    gates = [p for name, p in model.named_parameters() if name.endswith("gate.alpha") and hasattr(p, "ds_id")]
    if not gates:
        values: dict[str, dict[str, float]] = model.gate_values()
        return values
    import deepspeed

    with deepspeed.zero.GatheredParameters(gates):
        values = model.gate_values()
    return values


class EarlyStopping(TrainerCallback):
    """Ends the run after ``patience`` evaluations without improvement. Holds no state: the log of the run decides, so a
    resumed run stops where the uninterrupted one does."""

    def __init__(self, metric: str, greater_is_better: bool, patience: int) -> None:
        self.metric = metric if metric.startswith(_EVALUATION) else _EVALUATION + metric
        self.sign = -1.0 if greater_is_better else 1.0
        self.patience = patience

    def spent(self, state: Any) -> bool:
        """Whether the last ``patience`` evaluations brought nothing."""
        found = [self.sign * line[self.metric] for line in state.log_history if self.metric in line]
        values = [math.inf if math.isnan(value) else value for value in found]  # NaN: undefined, nothing is worse
        best = min(range(len(values)), key=values.__getitem__, default=0)
        return bool(self.patience) and len(values) - 1 - best >= self.patience

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_training_stop |= self.spent(state)
        return control

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.spent(state):
            raise RunIsOver
