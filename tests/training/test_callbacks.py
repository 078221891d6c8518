from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from deepmlf_llm.training.callbacks import (
    EarlyStopping,
    MetricsLog,
    RunIsOver,
    finite,
    gate_values,
    read_metrics,
)


def state(step: int = 0, history: list[float] | None = None) -> TrainerState:
    made = TrainerState(global_step=step, max_steps=10, epoch=1.0, is_world_process_zero=True)
    made.log_history = [{"eval_mae": value} for value in history or []]
    return made


@pytest.mark.parametrize(
    ("history", "patience", "stops"),
    [
        ([3, 2, 1], 2, False),
        ([1, 2], 2, False),
        ([1, 2, 3], 2, True),
        ([2, 1, 1], 1, True),
        ([1, 2, 3], 0, False),
        ([], 1, False),
        ([math.nan, 3, 2], 2, False),  # undefined at first, e.g. a correlation of constant predictions
        ([3, math.nan, math.nan], 2, True),
        ([math.nan, math.nan, math.nan], 2, True),
    ],
)
def test_early_stopping_counts_evaluations_without_improvement(
    history: list[float], patience: int, stops: bool
) -> None:
    stopping = EarlyStopping("mae", greater_is_better=False, patience=patience)
    assert stopping.on_evaluate(None, state(history=history), TrainerControl()).should_training_stop is stops


def test_early_stopping_the_other_way_and_on_resuming() -> None:
    stopping = EarlyStopping("eval_mae", greater_is_better=True, patience=2)
    assert not stopping.spent(state(history=[1, 2, 3]))
    assert stopping.spent(state(history=[3, 2, 1]))
    with pytest.raises(RunIsOver):
        stopping.on_epoch_begin(None, state(history=[3, 2, 1]), TrainerControl())
    stopping.on_epoch_begin(None, state(history=[1]), TrainerControl())


def test_metrics_log_forgets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.on_train_begin(None, state(0), None)
    for step in (1, 2, 3):
        log.on_log(None, state(step), None, {"loss": float(step), "grad_norm": float("nan")})
    log.on_log(None, state(3), None, {"eval_mae": 1.0, "eval_corr": float("nan")})
    log.on_log(None, state(3), None, {"train_runtime": 1.0})  # neither training nor validation
    with log.path.open("a") as file:
        file.write('{"kind": "train", "st')  # a kill in the middle of a line
    assert [line["step"] for line in read_metrics(log.path)] == [1, 2, 3, 3]

    MetricsLog(tmp_path).on_train_begin(None, state(2), None)
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert lines == [{"kind": "train", "step": s, "loss": float(s), "grad_norm": None} for s in (1, 2)]


def test_gates_are_logged_with_each_evaluation(tmp_path: Path) -> None:
    gates = {"layer 1": {"gca": 0.5, "ffw": 0.5}}
    model: Any = SimpleNamespace(named_parameters=list, gate_values=lambda: gates)
    log = MetricsLog(tmp_path)
    log.on_evaluate(None, state(4), None, metrics={"eval_mae": 1.0}, model=model)
    log.on_evaluate(None, state(4), None, metrics={"test_mae": 1.0}, model=model)
    assert read_metrics(log.path) == [{"kind": "gates", "step": 4, **gates}]
    assert gate_values(model) == gates


def test_json_has_no_nan() -> None:
    assert finite({"a": float("inf"), "b": {"c": float("nan")}, "d": 1.0, "e": "x"}) == {
        "a": None,
        "b": {"c": None},
        "d": 1.0,
        "e": "x",
    }
