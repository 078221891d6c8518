"""A run that begins with an adapter's weights: by name and shape, everything else as configured."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deepmlf_llm.errors import AdapterError, RunError
from deepmlf_llm.training.data import TrainingData
from deepmlf_llm.training.run import run_training
from deepmlf_llm.training.settings import RunSettings

from .test_run import run_until

MakeSettings = Callable[..., RunSettings]
WEIGHTS = "adapter_model.safetensors"


def trained(weights: Path) -> dict[str, torch.Tensor]:
    """Weights without BatchNorm's statistics, which move with every batch."""
    return {name: value for name, value in load_file(weights).items() if "running_" not in name and "num_b" not in name}


@pytest.fixture
def adapter(toy_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path) -> Path:
    """The run of an adapter."""
    run_training(toy_settings(max_steps=3, output_dir=str(tmp_path / "first")), toy_data)
    return tmp_path / "first"


@pytest.mark.parametrize("inside", ["", "adapter", "checkpoint-3"])
def test_a_run_begins_with_the_adapters_weights(
    toy_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path, adapter: Path, inside: str
) -> None:
    start = adapter / inside
    toy_data.fingerprint = "other data"
    run_training(toy_settings(init_from=str(start), learning_rate=0.0, max_steps=1, seed=7, batch_size=16), toy_data)
    before, after = trained(adapter / "adapter" / WEIGHTS), trained(tmp_path / "run" / "adapter" / WEIGHTS)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_run_that_goes_on_does_not_load_again(
    toy_settings: MakeSettings,
    toy_data: TrainingData,
    tmp_path: Path,
    adapter: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = {"init_from": str(adapter), "max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    whole = toy_settings(**values, output_dir=str(tmp_path / "whole"))
    cut = toy_settings(**values, output_dir=str(tmp_path / "cut"))
    expected = run_training(whole, toy_data)
    run_until(monkeypatch, cut, toy_data, 3)
    shutil.rmtree(adapter)
    capsys.readouterr()
    resumed = run_training(cut, toy_data)
    assert "weights from" not in capsys.readouterr().out
    assert resumed["metrics"] == expected["metrics"]
    weights = [load_file(tmp_path / name / "adapter" / WEIGHTS) for name in ("whole", "cut")]
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())


def test_lora_on_the_lm_may_begin_anew(
    toy_settings: MakeSettings, toy_data: TrainingData, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_training(toy_settings(init_from=str(adapter), lora_r=2, max_steps=1, gate="tanh"), toy_data)
    said = capsys.readouterr().out
    assert f"weights from {adapter}, fresh LoRA on the LM" in said
    assert "which was trained with gate='sigmoid' (here 'tanh')" in said


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "layers": ({"fusion_layers": [1, 2]}, r"missing .*mm_blocks.2.*unknown .*mm_blocks.3.*fusion_layers=\[1, 3\]"),
    "tokens": ({"num_fusion_tokens": 5}, r"misshapen .*fusion_tokens.* \[3, \d+\] \(expected \[5, \d+\]\)"),
    "width": ({"av_encoder__width": 24}, r"misshapen .*av_encoder.width=\d+ \(here 24\)"),
    "a modality fewer": ({"modalities": ["audio"]}, r"the data: no 'vision'"),
    "another base": ({"base_model": "tiny-mistral"}, r"another base model"),
    "no adapter": ({"init_from": "nowhere"}, r"init_from=nowhere: .*there is no such directory"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_refused_by_name(
    toy_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path, adapter: Path, case: str
) -> None:
    changes, words = MISFITS[case]
    with pytest.raises(AdapterError, match=words):
        run_training(toy_settings(**{"init_from": str(adapter), "max_steps": 1, **changes}), toy_data)
    assert not (tmp_path / "run").exists()


def test_other_features_are_refused(toy_settings: MakeSettings, toy_data: TrainingData, adapter: Path) -> None:
    for split in toy_data.splits().values():
        for item in split.items:  # type: ignore[attr-defined]
            item["audio"], item["smell"] = item["audio"][:, :2], item["vision"]
    toy_data.modalities = {"audio": {"dim": 2}, "vision": {"dim": 4}, "smell": {"dim": 4}}
    words = r"init_from=.*: the data: 'audio' has 2 dimensions, expected 5; the adapter has no 'smell'"
    with pytest.raises(AdapterError, match=words):
        run_training(toy_settings(init_from=str(adapter)), toy_data)


def test_another_adapter_in_its_place_is_another_run(
    toy_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path, adapter: Path
) -> None:
    settings = toy_settings(init_from=str(adapter), max_steps=2)
    run_training(settings, toy_data)
    shutil.rmtree(adapter)
    assert run_training(settings, toy_data)["status"] == "finished"  # and needs it no more
    run_training(toy_settings(max_steps=2, seed=3, output_dir=str(adapter)), toy_data)
    with pytest.raises(RunError, match=r"holds another run \(init_from: '\w+' there, '\w+' here\)"):
        run_training(settings, toy_data)


def test_a_dry_run_looks_at_it_too(
    toy_settings: MakeSettings, toy_data: TrainingData, tmp_path: Path, adapter: Path
) -> None:
    assert run_training(toy_settings(init_from=str(adapter)), toy_data, dry_run=True)["status"] == "planned"
    with pytest.raises(AdapterError, match="misshapen"):
        run_training(toy_settings(init_from=str(adapter), num_fusion_tokens=7), toy_data, dry_run=True)
    assert not (tmp_path / "run").exists()
