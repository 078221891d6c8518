"""An adapter from a checkpoint: whole, verified, the same tensors; and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deepmlf_llm.adapters import files
from deepmlf_llm.commands import extract
from deepmlf_llm.commands.cli import main
from deepmlf_llm.errors import AdapterError, FileError
from deepmlf_llm.training.data import TrainingData
from deepmlf_llm.training.extract import extract_adapter
from deepmlf_llm.training.run import run_training
from deepmlf_llm.training.settings import RunSettings


def test_an_adapter_comes_out_of_a_checkpoint(
    toy_settings: Callable[..., RunSettings], toy_data: TrainingData, tmp_path: Path, cheap_runs: None, capsys: Any
) -> None:
    from deepmlf_llm import SentimentPredictor

    values = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    run_training(toy_settings(**values, learning_rate=0.5, warmup_steps=0), toy_data)  # which makes it worse
    run = tmp_path / "run"
    capsys.readouterr()
    extract.main([str(run / "checkpoint-4"), "--output", str(tmp_path / "newest")])
    assert "checkpoint-4: " in capsys.readouterr().out
    found = extract_adapter(run, tmp_path / "best", which="best")
    assert found["metrics"]["mae"] > 0
    config, tensors = files.read_adapter(tmp_path / "newest")
    stored = files.read_adapter(run / "checkpoint-4")[1]
    assert tensors.keys() == stored.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in stored.items())
    assert {path.name for path in (tmp_path / "newest").iterdir()} == {
        *("README.md", "adapter_config.json", "adapter_model.safetensors"),
    }
    rows = {name: [torch.randn(3, facts.dim)] for name, facts in config.modalities.items()}
    SentimentPredictor.from_pretrained(tmp_path / "newest").predict(["so it went"], **rows)

    with pytest.raises(FileError, match="exists"):
        extract_adapter(run, tmp_path / "best")
    (run / "checkpoint-4" / "checkpoint.json").unlink()
    with pytest.raises(AdapterError, match="checkpoint-4: no whole checkpoint: it was cut while being written"):
        extract_adapter(run / "checkpoint-4", tmp_path / "none")
    assert extract_adapter(run, tmp_path / "older")["step"] == 2
    shutil.rmtree(run / "checkpoint-2")
    with pytest.raises(AdapterError, match=r"holds no whole checkpoint \(checkpoint-4: it was cut"):
        extract_adapter(run, tmp_path / "none")
    assert main(["extract", str(tmp_path / "nowhere"), "--output", str(tmp_path / "none")]) == 2
    assert "nowhere: not there" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
