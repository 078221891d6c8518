"""A checkpoint holds all that happened at its step: a run that goes on from any of its checkpoints ends as if uncut.

What is due at a step is a combination of three schedules and of the ends of epochs, of the run and of patience. Each
run here keeps all of its checkpoints; from each of them a copy goes on, and its whole final state is compared.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from deepmlf_llm.training import run as run_module
from deepmlf_llm.training.checkpoints import all_checkpoints, flaw, step_of
from deepmlf_llm.training.data import TrainingData
from deepmlf_llm.training.metrics_log import read_metrics
from deepmlf_llm.training.run import run_training
from deepmlf_llm.training.settings import RunSettings
from deepmlf_llm.training.stopping import RunStopped

from .conftest import DIMS, Utterances
from .run_state import timeless, trainer_state

MakeSettings = Callable[..., RunSettings]

# 14 utterances, 4 a step: an epoch has 4 steps, the last two of 3 utterances; with accumulation each is two batches.
SAVES: dict[str, dict[str, Any]] = {
    "saved each step": {"save_strategy": "steps", "save_steps": 1},
    "saved at its end": {"save_strategy": "steps", "save_steps": 2},
    "saved beside it": {"save_strategy": "steps", "save_steps": 3},
    "saved each epoch": {"save_strategy": "epoch"},
    "saved when best": {"save_strategy": "no"},
}
EVALUATIONS: dict[str, dict[str, Any]] = {
    "evaluated each epoch": {"eval_strategy": "epoch"},
    "evaluated at its end": {"eval_strategy": "steps", "eval_steps": 2},
    "evaluated beside it": {"eval_strategy": "steps", "eval_steps": 3},
}
LOGS: dict[str, dict[str, Any]] = {
    "logged each step": {"logging_steps": 1},
    "logged at its end": {"logging_steps": 2},
    "logged beside it": {"logging_steps": 3},
    "logged each epoch": {"logging_strategy": "epoch"},
}
ENDS: dict[str, dict[str, Any]] = {
    "whole epochs": {"num_train_epochs": 2},
    "mid-epoch": {"max_steps": 6},
    "patience": {"num_train_epochs": 4, "early_stopping_patience": 1, "learning_rate": 0.0},
    "patience and a best": {"num_train_epochs": 3, "early_stopping_patience": 2, "learning_rate": 3e-2},
}
STEPS: dict[str, dict[str, Any]] = {
    "one batch": {},
    "two batches a step": {"gradient_accumulation_steps": 2},
    "a rate by plateau": {"lr_scheduler_type": "reduce_lr_on_plateau"},
}
QUICK = [
    ("saved each step", "evaluated each epoch", "logged at its end", "whole epochs", "one batch"),
    ("saved at its end", "evaluated each epoch", "logged each step", "patience", "one batch"),
    ("saved each step", "evaluated at its end", "logged beside it", "mid-epoch", "two batches a step"),
    ("saved when best", "evaluated each epoch", "logged each epoch", "patience and a best", "a rate by plateau"),
]


@pytest.fixture(scope="module")
def data() -> TrainingData:
    sizes = {"train": 14, "valid": 6, "test": 6}
    parts = {name: Utterances(size, seed) for seed, (name, size) in enumerate(sizes.items())}
    return TrainingData(**parts, modalities={name: {"dim": dim} for name, dim in DIMS.items()}, fingerprint="toy")


@pytest.fixture
def make(toy_settings: MakeSettings, cheap_runs: None) -> MakeSettings:
    """Settings of small runs that keep every checkpoint."""

    def settings(**changes: Any) -> RunSettings:
        small = {
            "batch_size": 4,
            "fusion_layers": [1],
            "num_fusion_tokens": 2,
            "num_layers": 2,
            "modalities": ["audio"],
        }
        small |= {"av_encoder__width": 8, "av_encoder__num_heads": 2, "seqaug__p_apply": 0.5}
        small |= {"modality_dropout": 0.2, "frame_dropout": 0.3, "ema_decay": 0.6}
        return toy_settings(**{"save_total_limit": None, **small, **changes})

    return settings


def outcome(run: Path, result: dict[str, Any]) -> dict[str, Any]:
    """All that is left of a run, without clocks and places."""
    last = all_checkpoints(run)[0]
    return {
        "checkpoints": [path.name for path in all_checkpoints(run)],
        "state": trainer_state(last),
        "log": [timeless(line) for line in read_metrics(run / "metrics.jsonl")],
        "adapter": (run / "adapter" / "adapter_model.safetensors").read_bytes(),
        "weights": (last / "adapter_model.safetensors").read_bytes(),
        "torch": {
            name: _content(torch.load(last / name, weights_only=False))
            for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth")
        },
        "metrics": (result["metrics"], result["heads"], result["selection"]),
        "average": (last / "ema.safetensors").read_bytes(),
        "steps": (result["train"]["steps"], result["train"]["best_step"], result["train"]["epochs"]),
    }


def _content(value: Any) -> Any:
    """What a torch file holds, every bit of it, in types that compare."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.cpu().numpy().tobytes()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.tobytes()
    if isinstance(value, dict):
        return {name: _content(inner) for name, inner in value.items()}
    return [_content(inner) for inner in value] if isinstance(value, list | tuple) else value


def resumed_from(
    checkpoint: Path, name: str, settings: MakeSettings, data: TrainingData, **values: Any
) -> dict[str, Any]:
    """A copy of a run as it was when ``checkpoint`` had just been written, gone on with."""
    whole = checkpoint.parent
    copy = whole.parent / name
    shutil.copytree(whole, copy, ignore=shutil.ignore_patterns("adapter", "result.json"))
    for later in all_checkpoints(copy):
        if (step_of(later) or 0) > (step_of(checkpoint) or 0):
            shutil.rmtree(later)
    result = run_training(settings(**values, output_dir=str(copy)), data)
    found = outcome(copy, result)
    shutil.rmtree(copy)
    return found


def check_every_resume(
    make: MakeSettings, data: TrainingData, place: Path, values: dict[str, Any], most: int | None = None
) -> int:
    """From each checkpoint; where there are more than ``most`` of them, from every second one."""
    whole = place / "whole"
    expected = outcome(whole, run_training(make(**values, output_dir=str(whole)), data))
    checkpoints = all_checkpoints(whole)
    for checkpoint in checkpoints[:: 1 if most is None or len(checkpoints) <= most else 2]:
        found = resumed_from(checkpoint, f"from-{checkpoint.name}", make, data, **values)
        for part, value in expected.items():
            assert found[part] == value, f"{part} differs after a resume from {checkpoint.name}"
    return len(checkpoints)


def settings_of(save: str, evaluation: str, log: str, end: str, step: str) -> dict[str, Any]:
    return {**SAVES[save], **EVALUATIONS[evaluation], **LOGS[log], **ENDS[end], **STEPS[step]}


@pytest.mark.parametrize("case", QUICK, ids="-".join)
def test_a_run_ends_the_same_from_each_of_its_checkpoints(
    make: MakeSettings, data: TrainingData, tmp_path: Path, case: tuple[str, ...]
) -> None:
    assert check_every_resume(make, data, tmp_path, settings_of(*case)) >= 1


def test_averages_are_the_same_from_each_checkpoint(make: MakeSettings, data: TrainingData, tmp_path: Path) -> None:
    """The average of the last evaluations, too, whichever checkpoints lie between them."""
    values = {"save_strategy": "steps", "save_steps": 3, "average_last": 2, "num_train_epochs": 3}
    assert check_every_resume(make, data, tmp_path, values) == 6  # steps 3, 6, 9 and the ends of epochs 4, 8, 12


class Ask(TrainerCallback):
    """Sends this process a signal as a step begins."""

    def __init__(self, step: int, number: signal.Signals) -> None:
        self.step, self.number = step, number

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(
    ("step", "number"), [(0, signal.SIGTERM), (2, signal.SIGINT), (3, signal.SIGTERM), (6, signal.SIGHUP)]
)
def test_a_run_that_was_told_to_stop_ends_as_if_it_had_not_been(
    make: MakeSettings,
    data: TrainingData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    number: signal.Signals,
) -> None:
    """In mid-window of the log, at the end of an epoch (step 4), one step before the last (8)."""
    values = settings_of(*QUICK[0]) | {"logging_steps": 3, "save_strategy": "epoch"}
    whole = outcome(tmp_path / "whole", run_training(make(**values, output_dir=str(tmp_path / "whole")), data))
    settings = make(**values, output_dir=str(tmp_path / "cut"))
    before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    with monkeypatch.context() as patch:
        make_trainer = run_module.make_trainer

        def with_signal(*args: Any) -> Any:
            trainer = make_trainer(*args)
            trainer.add_callback(Ask(step, number))
            return trainer

        patch.setattr(run_module, "make_trainer", with_signal)
        with pytest.raises(RunStopped) as stopped:
            run_training(settings, data)
    assert stopped.value.code == 128 + number
    assert {name: signal.getsignal(name) for name in before} == before
    newest = all_checkpoints(tmp_path / "cut")[0]
    assert step < (step_of(newest) or 0) <= step + 2
    assert flaw(newest) is None
    resumed = outcome(tmp_path / "cut", run_training(settings, data))
    assert set(resumed.pop("checkpoints")) >= set(whole.pop("checkpoints"))
    for part, value in whole.items():
        assert resumed[part] == value, part


def test_a_signal_before_training_ends_a_run_that_leaves_nothing(
    make: MakeSettings, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_trainer(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal was not heard")

    monkeypatch.setattr(run_module, "make_trainer", make_trainer)
    with pytest.raises(RunStopped):
        run_training(make(), data)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow  # 15 combinations, some 60 runs
@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_every_combination_of_schedules(
    make: MakeSettings, data: TrainingData, tmp_path: Path, save: str, evaluation: str
) -> None:
    """Of the log, the ends and the kinds of steps one for each pair, so that nearly all pairs of any two are met."""
    row, column = list(SAVES).index(save), list(EVALUATIONS).index(evaluation)
    log, end = list(LOGS)[(row + 3 * column) % len(LOGS)], list(ENDS)[(3 * row + 2 * column) % len(ENDS)]
    step = list(STEPS)[(row + column) % len(STEPS)]
    values = settings_of(save, evaluation, log, end, step)
    assert check_every_resume(make, data, tmp_path, values, most=4) >= 1, (log, end, step)
