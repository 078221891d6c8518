from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from deepmlf_llm.errors import ConfigError
from deepmlf_llm.training import selection as selection_module
from deepmlf_llm.training.checkpoints import all_checkpoints
from deepmlf_llm.training.data import TrainingData
from deepmlf_llm.training.run import run_training
from deepmlf_llm.training.settings import RunSettings
from deepmlf_llm.training.trainer_arguments import read_deepspeed

MakeSettings = Callable[..., RunSettings]
pytestmark = pytest.mark.usefixtures("cheap_runs")
EVERY_STEP = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 8}


def weights_in(place: Path) -> dict[str, torch.Tensor]:
    return load_file(place / "adapter_model.safetensors")


def test_averages_are_those_of_the_weights_on_disk_and_the_better_on_validation_is_taken(
    toy_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    averages = {"ema_decay": 0.7, "average_last": 3, "save_total_limit": None, "learning_rate": 2e-2}
    result = run_training(toy_settings(**EVERY_STEP, **averages), toy_data)
    run = tmp_path / "run"
    steps = [weights_in(run / f"checkpoint-{step}") for step in range(1, 9)]
    expected = {name: tensor.double() for name, tensor in steps[0].items()}
    for n, step in enumerate(steps[1:], 1):
        d = min(0.7, (1 + n) / (10 + n))
        expected = {name: d * old + (1 - d) * step[name] for name, old in expected.items()}
    candidates = {
        "best": weights_in(run / f"checkpoint-{result['train']['best_step']}"),
        "ema": load_file(run / "checkpoint-8" / "ema.safetensors"),
        "last_3": {name: (steps[3][name] + steps[5][name] + steps[7][name]) / 3 for name in steps[0]},
    }
    for name, tensor in candidates["ema"].items():
        if tensor.is_floating_point():
            assert_close(tensor.double(), expected[name], rtol=1e-4, atol=1e-6)
    told = result["selection"]
    assert told["candidates"].keys() == candidates.keys()
    maes = {name: facts["mae"] for name, facts in told["candidates"].items()}
    assert told["taken"] == min(maes, key=lambda name: maes[name])
    assert len(set(maes.values())) == 3
    assert result["metrics"]["validation"]["mae"] == min(maes.values())
    for name, tensor in weights_in(run / "adapter").items():
        if tensor.is_floating_point():
            assert_close(tensor, candidates[told["taken"]][name], rtol=1e-5, atol=1e-6, msg=name)
    assert f"taken: {told['taken']}" in capsys.readouterr().out


@pytest.mark.parametrize(("bonus", "taken"), [(0.0, "best"), (0.5, "last_2"), (-0.5, "best")])
def test_an_average_wins_only_where_it_is_better(
    toy_settings: MakeSettings,
    toy_data: TrainingData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bonus: float,
    taken: str,
) -> None:
    """At a learning rate of 0 all candidates are one adapter; what validation says of the average is then made up."""
    values = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "learning_rate": 0.0, "head_norm": "layer"}
    on_validation = selection_module._on_validation

    def made_up(*args: Any) -> Any:
        found, value = on_validation(*args)
        return found, value - bonus * ("last_2" in args)

    monkeypatch.setattr(selection_module, "_on_validation", made_up)
    result = run_training(toy_settings(**values, average_last=2, save_total_limit=1), toy_data)
    assert result["selection"]["taken"] == taken
    assert [path.name for path in all_checkpoints(tmp_path / "run")] in (
        ["checkpoint-4"],
        ["checkpoint-4", "checkpoint-2"],  # the newest and the best
    )


def test_an_average_over_a_checkpoint_that_is_not_whole_is_left_out(
    toy_settings: MakeSettings,
    toy_data: TrainingData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    averages = selection_module._averages

    def damaged(trainer: Any, launch: Any) -> Any:
        best = trainer.state.best_global_step
        path = tmp_path / "run" / f"checkpoint-{({2, 4} - {best}).pop()}" / "adapter_model.safetensors"
        save_file({"w": torch.zeros(1)}, path)
        return averages(trainer, launch)

    monkeypatch.setattr(selection_module, "_averages", damaged)
    settings = toy_settings(max_steps=4, eval_strategy="steps", eval_steps=2, average_last=2)
    assert "selection" not in run_training(settings, toy_data)
    assert "average_last: left out, checkpoint-" in capsys.readouterr().out


def test_by_default_nothing_is_averaged(toy_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path) -> None:
    result = run_training(toy_settings(max_steps=2), toy_data)
    assert "selection" not in result
    assert not list((tmp_path / "run").rglob("ema.safetensors"))


@pytest.mark.parametrize("averages", [{"ema_decay": 0.9}, {"average_last": 2}])
def test_averages_under_zero_3_are_refused(toy_settings: MakeSettings, averages: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"ema_decay and average_last need .*zero2"):
        read_deepspeed(toy_settings(deepspeed="zero3", **averages))
