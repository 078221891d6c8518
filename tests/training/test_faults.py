"""Faults that are simulated: each does what it says, and the run behind it loses nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deepmlf_llm.errors import ConfigError, FileError, RunError
from deepmlf_llm.training import faults as faulty
from deepmlf_llm.training.checkpoints import all_checkpoints, flaw, step_of
from deepmlf_llm.training.data import TrainingData
from deepmlf_llm.training.faults import Fault, parse_faults
from deepmlf_llm.training.metrics_log import read_metrics
from deepmlf_llm.training.run import run_training
from deepmlf_llm.training.settings import RunSettings

from .test_run import Killed, weights_of

MakeSettings = Callable[..., RunSettings]
SAVES = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "eval_strategy": "steps", "eval_steps": 2}


def test_faults_are_read_strictly() -> None:
    assert parse_faults(None) == []
    assert parse_faults("kill:rank1:step12, nan:step3") == [Fault("kill", 1, "step", 12), Fault("nan", 0, "step", 3)]
    assert parse_faults("lost_rename:write7") == [Fault("lost_rename", 0, "write", 7)]
    assert str(parse_faults("full_disk:step2")[0]) == "full_disk:rank0:step2"
    for bad in (
        "kill",
        "kill:step0",
        "kill:rank:step1",
        "hang:write3",
        "burn:step1",
        "kill:rank1:step12;nan:step2",
        "",
    ):
        with pytest.raises(ConfigError, match=r"--simulate_fault .*expected KIND"):
            parse_faults(bad)


@pytest.fixture
def uncut(
    toy_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path, cheap_runs: None
) -> dict[str, torch.Tensor]:
    whole = toy_settings(**SAVES, output_dir=str(tmp_path / "whole"))
    run_training(whole, toy_data)
    return weights_of(whole)


def test_a_full_disk_costs_the_new_checkpoint_only(
    toy_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path, uncut: dict[str, torch.Tensor]
) -> None:
    settings = toy_settings(**SAVES)
    with pytest.raises(FileError, match=r"checkpoint-4: .*the disk is full"):
        run_training(settings, toy_data, faults="full_disk:step4")
    assert [step_of(path) for path in all_checkpoints(tmp_path / "run")] == [2]
    assert flaw(tmp_path / "run" / "checkpoint-2") is None
    run_training(settings, toy_data)
    assert all(torch.equal(weights_of(settings)[name], tensor) for name, tensor in uncut.items())


@pytest.mark.parametrize("fault", ["kill:write9", "lost_rename:write12", "kill:write25", "lost_rename:write30"])
def test_a_kill_at_any_write_loses_nothing(
    monkeypatch: pytest.MonkeyPatch,
    toy_settings: MakeSettings,
    toy_data: TrainingData,
    uncut: dict[str, torch.Tensor],
    fault: str,
) -> None:
    """The kill is an exception that nothing of the run may catch; the whole with SIGKILL is benchmarks/soak.py."""
    settings = toy_settings(**SAVES)

    def die() -> None:
        raise Killed

    monkeypatch.setattr(faulty, "die", die)
    with pytest.raises(Killed):
        run_training(settings, toy_data, faults=fault)
    run_training(settings, toy_data)
    assert all(torch.equal(weights_of(settings)[name], tensor) for name, tensor in uncut.items())


def test_steps_that_are_not_finite_are_left_out_up_to_a_number(
    toy_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path, cheap_runs: None, capsys: Any
) -> None:
    with pytest.raises(RunError, match=r"step 2: the loss is not finite \(task\), at the utterances '\d+'"):
        run_training(toy_settings(**SAVES), toy_data, faults="nan:step2")
    settings = toy_settings(**SAVES, max_skipped_steps=1, output_dir=str(tmp_path / "skips"))
    result = run_training(settings, toy_data, faults="nan:step2")
    assert result["train"]["skipped_steps"] == 1
    said = capsys.readouterr().out
    assert "step 2: the loss is not finite (task), at the utterances '" in said
    assert "left out (1 of at most 1)" in said
    lines = [line for line in read_metrics(tmp_path / "skips" / "metrics.jsonl") if line["kind"] == "train"]
    assert all(line["loss"] is not None for line in lines if line["step"] != 2)
    assert all(torch.isfinite(tensor).all() for tensor in weights_of(settings).values())
    more = toy_settings(**SAVES, max_skipped_steps=1, output_dir=str(tmp_path / "more"))
    with pytest.raises(RunError, match=r"step 3: the loss is not finite"):
        run_training(more, toy_data, faults="nan:step2,nan:step3")


def test_a_step_that_is_left_out_changes_neither_weights_nor_statistics(
    toy_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path, cheap_runs: None
) -> None:
    """Saved after steps 1 and 2, the second of which is left out: the same weights, moments and running statistics."""
    values = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3, "save_total_limit": None}
    run_training(toy_settings(**values, max_skipped_steps=2, warmup_steps=0), toy_data, faults="nan:step2")
    from safetensors.torch import load_file

    one, two, three = (
        load_file(tmp_path / "run" / f"checkpoint-{step}" / "adapter_model.safetensors") for step in (1, 2, 3)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], three[name]) for name in one)
    states = [torch.load(tmp_path / "run" / f"checkpoint-{step}" / "optimizer.pt")["state"] for step in (1, 2)]
    assert all(torch.equal(states[0][i]["exp_avg"], states[1][i]["exp_avg"]) for i in states[0])
