"""A run that goes on with another number of processes, another ZeRO stage, another micro-batch; and with the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from deepmlf_llm.adapters import files
from deepmlf_llm.commands.train import parse_world
from deepmlf_llm.data.demo import embedded_dataset
from deepmlf_llm.errors import ConfigError, RunError
from deepmlf_llm.training.checkpoints import all_checkpoints, step_of
from deepmlf_llm.training.data import TrainingData
from deepmlf_llm.training.extract import extract_adapter
from deepmlf_llm.training.metrics_log import read_metrics
from deepmlf_llm.training.run import run_training
from deepmlf_llm.training.settings import RunSettings
from tests.devices import rounding

from .forked import SMALL
from .test_run import run_until, weights_of

MakeSettings = Callable[..., RunSettings]
pytestmark = pytest.mark.timeout(900)  # the runs of `worlds` take half a minute, and far longer on a busy machine
ENGINES = ("zero1", "zero2_offload", "zero3", "zero3_offload")
STAGES = ("zero2", "zero3")


def start(folder: Path, cases: dict[str, Any]) -> dict[str, Any]:
    """The cases, one after another, by a program that imports everything once."""
    program = str(Path(__file__).with_name("worlds.py"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, program, str(folder), json.dumps(cases)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> tuple[Path, dict[str, Any]]:
    """Two processes under ZeRO-2 to their end; from their checkpoint of step 2 the same two, one under ZeRO-3, and one
    without an engine that takes two batches a step. And what two processes do under every other engine."""
    folder = tmp_path_factory.mktemp("worlds")
    own = {**SMALL, "data": str(embedded_dataset(folder / "data", sizes=(32, 8, 8)))}
    ds = {stage: str(repository / "ds_configs" / f"{stage}.json") for stage in ("zero2", *ENGINES)}
    killed = {"words": ["--simulate_fault", "kill:rank1:step3"], "how": {"kill_others": False}}
    planned, not_finite = {"words": ["--dry-run", "--world", "8"]}, {"words": ["--simulate_fault", "nan:rank1:step2"]}
    batches = {**own, "head_norm": "batch", "av_encoder.dropout": 0.1}
    augmented = {name: value for name, value in SMALL.items() if name != "max_steps"} | {"num_train_epochs": 2}
    augmented |= {"seqaug.p_apply": 0.5, "seqaug.p_feat": 0.3, "seqaug.av_p_apply": 0.5, "seqaug.av_p_feat": 0.3}
    opposite = {"processes": 2, "opposite": True}
    cases = {
        "whole": {"processes": 2, "settings": {**own, "deepspeed": ds["zero2"]}},
        "same": {"processes": 2, "from": ["whole", 2], "settings": {**own, "deepspeed": ds["zero2"]}},
        "zero3": {"processes": 1, "from": ["whole", 2], "settings": {**own, "deepspeed": ds["zero3"]}},
        "killed": {"processes": 2, "from": ["whole", 2], "settings": {**own, "deepspeed": ds["zero2"]}, **killed},
        "skips": {"processes": 2, "settings": {**own, "deepspeed": ds["zero2"], "max_skipped_steps": 1}, **not_finite},
        "planned": {"processes": 1, "settings": {**own, "deepspeed": ds["zero3"]}, **planned},
        "seldom": {"processes": 2, "settings": batches},
        "often": {"processes": 2, "settings": {**batches, "save_steps": 1}},
        **{f"two-{engine}": {"processes": 2, "settings": {**batches, "deepspeed": ds[engine]}} for engine in ENGINES},
        **{f"opposite-{stage}": {**opposite, "settings": {**augmented, "deepspeed": ds[stage]}} for stage in STAGES},
        "plain": {"processes": 1, "from": ["whole", 2], "settings": {**own, "gradient_accumulation_steps": 2}},
    }
    found = start(folder, cases)
    for name, ended in found.items():
        assert not any(ended["codes"]) or name == "killed", (name, ended["output"])
    return folder, found


def adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def test_the_same_world_goes_on_to_the_bit(worlds: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = worlds
    whole, same = (adapter(folder / name) for name in ("whole", "same"))
    assert all(torch.equal(same[name], tensor) for name, tensor in whole.items())
    states = [torch.load(folder / name / "checkpoint-4" / "optimizer.pt") for name in ("whole", "same")]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for one, other in zip(states[0]["state"].values(), states[1]["state"].values(), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert not list((folder / "whole" / "checkpoint-2").glob("global_step*"))


def test_a_checkpoint_more_changes_nothing_where_running_statistics_are_of_two_processes(
    worlds: tuple[Path, dict[str, Any]],
) -> None:
    seldom, often = (adapter(worlds[0] / name) for name in ("seldom", "often"))
    assert any("running_mean" in name for name in seldom)
    assert all(torch.equal(often[name], tensor) for name, tensor in seldom.items())


@pytest.mark.parametrize("engine", ENGINES)
def test_every_stage_gives_what_ddp_gives(worlds: tuple[Path, dict[str, Any]], engine: str) -> None:
    folder, _ = worlds
    mine, ddp = (
        json.loads((folder / name / "result.json").read_text())["metrics"] for name in (f"two-{engine}", "seldom")
    )
    assert mine["test"]["mae"] == pytest.approx(ddp["test"]["mae"], abs=1e-3)
    weights = adapter(folder / f"two-{engine}")
    assert weights.keys() == adapter(folder / "seldom").keys()
    assert all(tensor.numel() for tensor in weights.values())  # ZeRO-3 must not write empty pieces


@pytest.mark.parametrize("engine", ENGINES)
def test_an_adapter_comes_out_of_a_checkpoint_of_every_stage(
    worlds: tuple[Path, dict[str, Any]], tmp_path: Path, engine: str
) -> None:
    """Without the run, by one process; equal to DDP's at the first step that was saved."""
    folder, _ = worlds
    found = [
        files.read_adapter(extract_adapter_to(folder / name / "checkpoint-2", tmp_path / name))[1]
        for name in (f"two-{engine}", "seldom")
    ]
    assert found[0].keys() == found[1].keys()
    for name, tensor in found[1].items():
        assert found[0][name].numpy() == pytest.approx(tensor.numpy(), abs=2.1e-3), name  # Adam moves by 5e-4 a step


def extract_adapter_to(checkpoint: Path, output: Path) -> Path:
    extract_adapter(checkpoint, output)
    return output


@pytest.mark.parametrize("stage", STAGES)
def test_processes_that_lack_opposite_modalities_finish(worlds: tuple[Path, dict[str, Any]], stage: str) -> None:
    """The hang of this field: one process runs a module that another one skips."""
    train = json.loads((worlds[0] / f"opposite-{stage}" / "result.json").read_text())["train"]
    assert (train["steps"], train["processes"]) == (4, 2)


@pytest.mark.parametrize("name", ["zero3", "plain"])
def test_another_world_goes_on_to_rounding(worlds: tuple[Path, dict[str, Any]], name: str) -> None:
    """Adam divides by the root of tiny numbers, so rounding is seen in weights whose gradient is near 0."""
    folder, found = worlds
    whole, other = (adapter(folder / run) for run in ("whole", name))
    learning_rate = 5e-4
    for key, tensor in whole.items():
        assert (other[key] - tensor).abs().max() < 0.05 * learning_rate, key
    lines = [read_metrics(folder / run / "metrics.jsonl") for run in ("whole", name)]
    losses = [[line["loss"] for line in log if line["kind"] == "train"] for log in lines]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert "in another world: " in found[name]["output"][0]
    history = json.loads((folder / name / "result.json").read_text())["train"]["worlds"]
    assert [(world["from_step"], world["processes"]) for world in history] == [(0, 2), (2, 1)]
    moments = [torch.load(folder / run / "checkpoint-4" / "optimizer.pt")["state"] for run in ("whole", name)]
    assert len(moments[0]) == len(moments[1]) > 10
    for one, two in zip(moments[0].values(), moments[1].values(), strict=True):
        assert two["exp_avg"].shape == one["exp_avg"].shape
        assert two["exp_avg"] == pytest.approx(one["exp_avg"], abs=1e-5)
        assert float(two["step"]) == float(one["step"]) == 4


def test_the_death_of_a_process_is_noticed_and_said_once(worlds: tuple[Path, dict[str, Any]]) -> None:
    """By the other one, itself, without a launcher: within 30 seconds, with a code that says: try again."""
    folder, found = worlds
    killed = found["killed"]
    assert killed["codes"] == [75, -9], killed["output"]
    assert killed["seconds"][0] - killed["seconds"][1] < 30
    said = "".join(killed["output"])
    assert (
        len(re.findall(r"error: process 1 \(.*, pid \d+\) has died after step 2; .* the same command goes on", said))
        == 1
    )
    assert said.count("simulated fault: kill:rank1:step3") == 1
    assert "Traceback" not in said
    assert step_of(all_checkpoints(folder / "killed")[0]) == 2


def test_a_step_that_is_not_finite_is_left_out_under_deepspeed_too(worlds: tuple[Path, dict[str, Any]]) -> None:
    """Of one process of two: both leave the same step out, and the others are made."""
    folder, found = worlds
    assert "step 2: the loss is not finite (task), at the utterances" in found["skips"]["output"][0]
    assert json.loads((folder / "skips" / "result.json").read_text())["train"]["skipped_steps"] == 1
    log = [line for line in read_metrics(folder / "skips" / "metrics.jsonl") if line["kind"] == "train"]
    assert [line["loss"] is None for line in log] == [False, True, False, False]
    assert all(torch.isfinite(tensor).all() for tensor in adapter(folder / "skips").values())


def test_a_dry_run_plans_for_processes_that_are_not_there(worlds: tuple[Path, dict[str, Any]]) -> None:
    folder, found = worlds
    said = found["planned"]["output"][0]
    assert "batch: 1 x 8 processes x 1 accumulated = 8 utterances a step" in said
    assert "8 processes have the same number of batches, each utterance once" in said
    assert "4 steps, 4 an epoch" in said
    assert not (folder / "planned").exists()


def test_a_world_is_planned_in_a_dry_run_only(toy_settings: MakeSettings, toy_data: TrainingData) -> None:
    with pytest.raises(ConfigError, match="--world 64: of a dry run in one process"):
        run_training(toy_settings(), toy_data, world=64)
    for text in ("0", "many", "-3", "100000"):
        with pytest.raises(ConfigError, match="expected a number of processes"):
            parse_world(text)


@pytest.mark.slow  # it stands still for a while
def test_a_process_that_hangs_is_named(repository: Path, tmp_path: Path) -> None:
    own = {**SMALL, "data": str(embedded_dataset(tmp_path / "data", sizes=(32, 8, 8))), "ddp_timeout": 15}
    ds = str(repository / "ds_configs" / "zero2.json")
    case = {"processes": 2, "settings": {**own, "deepspeed": ds}, "words": ["--simulate_fault", "hang:rank1:step2"]}
    ended = start(tmp_path, {"hung": {**case, "how": {"kill_others": False}}})["hung"]
    assert ended["codes"] == [75, 75], ended["output"]
    assert "process 1 (" in ended["output"][0]
    assert "stands still after step 1" in ended["output"][0]
    assert max(ended["seconds"]) < 90


@pytest.mark.parametrize(("accumulated", "scope"), [(2, "joint"), (8, "fusion")])
def test_any_cut_of_a_step_gives_the_same_run(
    toy_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path, cheap_runs: None, accumulated: int, scope: str
) -> None:
    """Twenty steps of 8 utterances at once, or in batches of 4 or of one."""
    values = {name.replace(".", "__"): SMALL[name] for name in ("head_norm", "av_encoder.dropout")}
    values |= {"ffw_scope": scope, "num_train_epochs": 4}
    once = toy_settings(**values, output_dir=str(tmp_path / "once"))
    cut = toy_settings(**values, output_dir=str(tmp_path / "cut"), gradient_accumulation_steps=accumulated)
    logs = []
    for settings in (once, cut):
        run_training(settings, toy_data)
        logs.append(read_metrics(Path(str(settings.output_dir)) / "metrics.jsonl"))
    losses = [[line["loss"] for line in log if line["kind"] == "train"] for log in logs]
    assert len(losses[0]) == 20
    assert losses[1] == pytest.approx(losses[0], abs=rounding(2e-4))
    assert losses[1][0] == pytest.approx(losses[0][0], abs=rounding(1e-6))


def test_a_default_directory_is_found_again_by_another_micro_batch(
    toy_settings: MakeSettings,
    toy_data: TrainingData,
    tmp_path: Path,
    cheap_runs: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    schedule = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "output_dir": None}
    run_until(monkeypatch, toy_settings(**schedule), toy_data, 3)
    run_training(toy_settings(**schedule, gradient_accumulation_steps=4), toy_data)
    said = capsys.readouterr().out
    assert "gradient_accumulation_steps=1 there, 4 here" in said
    assert "BatchNorm in the task head sees other batches" in said
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_resume_never_and_from_a_checkpoint(
    toy_settings: MakeSettings,
    toy_data: TrainingData,
    tmp_path: Path,
    cheap_runs: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """``never`` begins no second run over one; a checkpoint elsewhere begins a directory; an earlier one of the run's
    own is gone back to, and later ones are kept under another name."""
    values = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "save_total_limit": None}
    first = toy_settings(**values, output_dir=str(tmp_path / "first"))
    run_training(first, toy_data, resume="never")
    whole, steps = weights_of(first), [step_of(path) for path in all_checkpoints(tmp_path / "first")]
    with pytest.raises(RunError, match=r"--resume never: .*first holds a run"):
        run_training(first, toy_data, resume="never")

    second = toy_settings(**values, output_dir=str(tmp_path / "second"))
    earlier = str(tmp_path / "first" / "checkpoint-2")
    run_training(second, toy_data, resume=earlier)
    assert "checkpoint-2 of" in capsys.readouterr().out
    assert all(torch.equal(weights_of(second)[name], tensor) for name, tensor in whole.items())
    lines = [
        [{k: v for k, v in line.items() if "runtime" not in k and "per_second" not in k} for line in read_metrics(path)]
        for path in (tmp_path / "first" / "metrics.jsonl", tmp_path / "second" / "metrics.jsonl")
    ]
    assert lines[0] == lines[1]

    (tmp_path / "first" / "result.json").unlink()
    run_training(first, toy_data, resume=earlier)
    assert "checkpoint-6 is set aside as checkpoint-6.later" in capsys.readouterr().out
    assert (tmp_path / "first" / "checkpoint-4.later" / "checkpoint.json").is_file()
    assert [step_of(path) for path in all_checkpoints(tmp_path / "first")] == steps
    assert all(torch.equal(weights_of(first)[name], tensor) for name, tensor in whole.items())

    third = str(tmp_path / "third")
    for resume, words in {
        "nowhere": "--resume nowhere: no checkpoint; expected auto, never or a directory",
        str(tmp_path): "no checkpoint",
        earlier: r"holds another run \(seed=42 there, 7 here\)",
    }.items():
        with pytest.raises(RunError, match=words):
            run_training(toy_settings(**values, seed=7, output_dir=third), toy_data, resume=resume)
    assert not Path(third).exists()


def test_draws_of_a_step_depend_on_seed_step_and_process() -> None:
    from deepmlf_llm.training.schedule import seed_of_step

    seeds = [seed_of_step(seed, step, rank) for seed in (0, 1) for step in range(50) for rank in range(4)]
    assert len(set(seeds)) == len(seeds)
    assert seeds[0] == int(np.random.SeedSequence([0, 0, 0]).generate_state(1)[0])
