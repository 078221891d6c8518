"""The recipe as users start it, and stage 2 after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deepmlf_llm.adapters.av_encoder_file import read_av_encoder
from deepmlf_llm.data.demo import embedded_dataset

from .test_train_llama import launcher, small, start


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(embedded_dataset(tmp_path_factory.mktemp("data"), sizes=(32, 8, 8)))


def words(data: str, **changes: Any) -> list[str]:
    values = {"data": data, "batch_size": 8, "max_steps": 4, "report_to": "none", "output_dir": "av", **changes}
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def test_both_stages(in_empty_directory: Any, data: str, tmp_path: Path) -> None:
    first = in_empty_directory("pretrain_av_encoder", *words(data))
    assert first.returncode == 0, first.stderr
    result = json.loads((tmp_path / "av" / "result.json").read_text())
    assert f"{result['metrics']['test']['mae']:.4f}" in first.stdout
    second = in_empty_directory("train_llama", *small(data, av_encoder_from="av", freeze_av_encoder=True))
    assert second.returncode == 0, second.stderr
    assert "AV encoder from av, frozen" in second.stdout


def test_help_shows_what_counts_here_only(in_empty_directory: Any) -> None:
    shown = in_empty_directory("pretrain_av_encoder", "--help").stdout
    for name in ("av_readout", "av_encoder.max_frames", "learning_rate", "early_stopping_patience", "dry-run"):
        assert f"--{name} " in shown
    for name in ("base_model", "fusion_layers", "text_cache", "lora_r", "gradient_checkpointing", "freeze_av_encoder"):
        assert f"--{name} " not in shown


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--ds", "zero2"], "deepspeed='zero2': the AV encoder is small; start it with python or torchrun"),
        (["--num_fusion_tokens", "4"], "num_fusion_tokens=4 is a setting of `deepmlf train`"),
        (["--av_readut", "last"], "did you mean 'av_readout'"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    in_empty_directory: Any, data: str, tmp_path: Path, given: list[str], message: str
) -> None:
    done = in_empty_directory("pretrain_av_encoder", *words(data), *given)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_frozen_encoder_is_saved_whole_under_zero_3(
    in_process: Any, repository: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There Trainer gathers trained weights only. One process is enough: its weights are in a shard all the same."""
    monkeypatch.chdir(tmp_path)
    assert in_process("pretrain_av_encoder", *words(data, max_steps=1)) == 0
    recipe = str(repository / "recipes" / "train_llama.py")
    frozen = {"av_encoder_from": "av", "freeze_av_encoder": True, "gate": "none", "max_steps": 2, "ds": "zero3"}
    done = start([*launcher("python"), recipe, *small(data, **frozen)], tmp_path)
    assert done.returncode == 0, done.stderr
    train = json.loads((tmp_path / "run" / "result.json").read_text())["train"]
    assert (train["launcher"], train["processes"], train["utterances_per_step"]) == ("python", 1, 8)
    weights = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    for name, value in read_av_encoder(tmp_path / "av" / "av_encoder").tensors.items():
        assert torch.equal(weights[f"base_model.deepmlf.av_encoder.{name}"], value), name


@pytest.mark.slow
def test_two_processes_train_the_encoder_of_one(
    in_process: Any, repository: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = str(repository / "recipes" / "pretrain_av_encoder.py")
    still = {"av_encoder.dropout": 0.0, "optim": "sgd"}
    assert in_process("pretrain_av_encoder", *words(data, output_dir="python", **still)) == 0
    done = start([*launcher("torchrun"), recipe, *words(data, output_dir="torchrun", **still)], tmp_path)
    assert done.returncode == 0, done.stderr
    one, two = (read_av_encoder(tmp_path / kind / "av_encoder").tensors for kind in ("python", "torchrun"))
    assert all(value.sub(two[name]).abs().max() < 1e-4 for name, value in one.items())
    assert json.loads((tmp_path / "torchrun" / "result.json").read_text())["train"]["processes"] == 2
