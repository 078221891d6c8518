"""Mirrors ``deepmlf_llm/training/robustness.py``; and training with modalities taken away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepmlf_llm.commands import evaluate as command
from deepmlf_llm.data.corruption import Corruption
from deepmlf_llm.data.demo import embedded_dataset
from deepmlf_llm.errors import ConfigError
from deepmlf_llm.statistics.predictions import read_predictions
from deepmlf_llm.training.data import training_split
from deepmlf_llm.training.evaluation import Evaluator
from deepmlf_llm.training.robustness import grid, measure
from deepmlf_llm.training.run import run_training
from deepmlf_llm.training.settings import RunSettings


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Adapter and data of a run of few steps, with a learning rate at which audio and vision are heard at once."""
    root = tmp_path_factory.mktemp("trained")
    data = str(embedded_dataset(root, sizes=(32, 8, 24)))
    settings = {
        "base_model": "tiny-llama",
        "fusion_layers": [1, 3],
        "num_fusion_tokens": 2,
        "max_steps": 6,
        "batch_size": 16,
        "learning_rate": 1e-2,
        "av_encoder.num_layers": 1,
        "missing": ["audio=0.5"],
        "report_to": "none",
    }
    run_training(RunSettings.from_dict({**settings, "data": data, "output_dir": str(root / "run")}))
    return str(root / "run"), data


def test_a_grid_has_all_combinations_and_the_untouched_split_first() -> None:
    cells = grid({"audio": (0.0, 0.5), "vision": (1.0,)}, {"audio": (0.3,)}, 7)
    assert [(c.missing, c.noise) for c in cells] == [
        ({"audio": 0.0, "vision": 0.0}, {"audio": 0.0}),
        ({"audio": 0.0, "vision": 1.0}, {"audio": 0.3}),
        ({"audio": 0.5, "vision": 1.0}, {"audio": 0.3}),
    ]
    assert all(c.seed == 7 for c in cells)
    assert len(grid({"audio": (0.0, 1.0)}, {}, 0)) == 2
    with pytest.raises(ConfigError, match="400 combinations"):
        grid({"a": tuple(range(20)), "b": tuple(range(20))}, {}, 0)


def test_what_is_missing_is_missing_in_any_batch(trained: tuple[str, str]) -> None:
    cells = grid({"audio": (0.5,), "vision": (0.0, 1.0)}, {}, 0)
    found = measure(Evaluator(*trained, batch_size=24), cells)
    again = measure(Evaluator(*trained, batch_size=5), cells[:1] + cells[2:])
    assert [c.name for c in found] == ["as it is", "audio missing 0.5", "audio missing 0.5, vision missing 1"]
    ids = found[0].score.predictions.ids
    gone = np.array([Corruption({"audio": 0.5}).is_absent("audio", i) for i in ids])
    assert found[1].absent["audio"] == gone.sum()
    assert found[2].absent["vision"] == 24
    clean, half = (c.score.predictions.head() for c in found[:2])
    assert half[~gone] == pytest.approx(clean[~gone], abs=1e-5)
    assert (np.abs(half[gone] - clean[gone]) > 1e-4).all()
    assert again[1].score.predictions.head() == pytest.approx(found[2].score.predictions.head(), abs=1e-4)
    assert found[0].change["mae"] == (0.0, [0.0, 0.0])
    assert found[2].change["mae"][0] == pytest.approx(
        found[2].score.metrics["mae"] - found[0].score.metrics["mae"], abs=1e-6
    )
    text = [c.score.predictions.head("text_polarity") for c in found]
    assert text[2] == pytest.approx(text[0], abs=1e-5)


def test_the_command_writes_table_and_plot(
    trained: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, data = trained
    output = tmp_path / "found.json"
    words = ["--adapter", adapter, "--data", data, "--output", str(output)]
    command.main([*words, "--missing", "audio=0:1", "--noise", "vision=0:2", "--mask_seed", "5"])
    result: dict[str, Any] = json.loads(output.read_text())
    report = result["robustness"]
    assert (report["mask_seed"], len(report["conditions"])) == (5, 4)
    assert report["conditions"][0]["metrics"]["mae"] == pytest.approx(result["metrics"]["mae"], abs=1e-5)
    assert len({round(c["metrics"]["mae"], 6) for c in report["conditions"]}) == 4
    assert "audio missing 1, vision noise 2" in capsys.readouterr().out
    assert "| audio missing 1, vision noise 2 | 24 | " in (tmp_path / "found.robustness.md").read_text()
    assert (tmp_path / "found.robustness.svg").read_bytes().startswith(b"<?xml")
    assert len(read_predictions(tmp_path / "found.parquet").ids) == 24
    for bad, message in (
        (["--missing", "audio=2"], "'audio=2': expected"),
        (["--missing", "smell=1"], "no modality 'smell'"),
        (["--noise", "audio"], "'audio': expected"),
        (["--missing", ""], "--missing: nothing given"),
    ):
        with pytest.raises(ConfigError, match=message):
            command.main([*words[:4], *bad])


def test_training_takes_away_by_seed_and_default_takes_nothing(toy_settings: Any, toy_data: Any) -> None:
    whole = training_split(toy_settings(), toy_data)
    assert whole is toy_data.train
    settings = toy_settings(missing="audio=0.5, vision=1", mask_seed=4)
    half = training_split(settings, toy_data)
    expected = [Corruption({"audio": 0.5}, seed=4).is_absent("audio", str(i)) for i in range(40)]
    assert [not len(half[i]["audio"]) for i in range(40)] == expected
    assert half.absent("vision") == 40
    assert len(toy_data.valid[0]["vision"])
    with pytest.raises(ConfigError, match="no modality 'smell'"):
        training_split(toy_settings(missing=["smell=1"]), toy_data)
    for bad in ("audio", "audio=2", "audio=0:1", "audio=.1,audio=.2"):
        with pytest.raises(ConfigError, match=r"missing=.*a list of modality=share"):
            toy_settings(missing=bad)


def test_a_run_without_it_is_the_run_it_was(toy_settings: Any) -> None:
    marks = [
        toy_settings(**values).fingerprint(1, "x", "y") for values in ({}, {"mask_seed": 3}, {"missing": "audio=1"})
    ]
    assert marks[0] == marks[1] != marks[2]
    assert toy_settings(missing="audio=1", mask_seed=3).fingerprint(1, "x", "y") != marks[2]


def test_a_run_trained_so_records_it(trained: tuple[str, str]) -> None:
    result = json.loads((Path(trained[0]) / "result.json").read_text())
    assert (result["config"]["missing"], result["config"]["mask_seed"]) == (["audio=0.5"], 0)
    low, high = result["intervals"]["test"]["mae"]
    assert low < result["metrics"]["test"]["mae"] < high
    assert result["bootstrap"]["resamples"] == 2000
    found = read_predictions(Path(trained[0]) / "predictions.parquet")
    assert np.abs(found.head() - found.labels).mean() == pytest.approx(result["metrics"]["test"]["mae"], abs=1e-6)
    text = np.abs(found.head("text_polarity") - found.labels).mean()
    assert text == pytest.approx(result["heads"]["test"]["text"]["mae"], abs=1e-6)
    valid = read_predictions(Path(trained[0]) / "predictions.parquet", "valid")
    assert np.abs(valid.head() - valid.labels).mean() == pytest.approx(result["metrics"]["validation"]["mae"], abs=1e-6)
    assert {"confusion.svg", "calibration.svg"} <= {path.name for path in Path(trained[0]).iterdir()}
