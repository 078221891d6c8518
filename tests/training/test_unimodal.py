"""A run whose heads learn from labels of one modality alone, as CH-SIMS has them, from a pickle to a prediction."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest

from deepmlf_llm import SentimentPredictor
from deepmlf_llm.data.prepare import prepare
from deepmlf_llm.errors import AdapterError, DataError
from deepmlf_llm.training.evaluation import evaluate_adapter
from deepmlf_llm.training.run import run_training
from deepmlf_llm.training.settings import RunSettings

from .conftest import QUICK_RUN

SIZES = {"train": 24, "valid": 8, "test": 8}
SETTINGS: dict[str, Any] = {
    **QUICK_RUN,
    "num_train_epochs": 10,
    "metric_for_best_model": "loss",  # the only one that knows of these labels
    "objective.unimodal_labels": True,
}


def source(tmp_path, suffixes="TAV"):
    """Audio and vision each say their own label; what the utterance is rated has nothing to do with them."""
    random = np.random.default_rng(0)
    tree = {}
    for split, size in SIZES.items():
        own = {suffix: random.uniform(-1, 1, size).round(1) for suffix in "TAV"}
        frames = {
            name: (random.normal(size=(size, 4, 3)) * 0.05 + own[suffix][:, None, None]).astype(np.float32)
            for suffix, name in (("A", "audio"), ("V", "vision"))
        }
        tree[split] = {
            "id": [f"{split}{row}" for row in range(size)],
            "raw_text": ["so it went"] * size,
            "regression_labels": np.where(np.arange(size) % 2, 0.5, -0.5),
            **{f"regression_labels_{suffix}": own[suffix] for suffix in suffixes},
            **frames,
            **{f"{name}_lengths": [4] * size for name in frames},
        }
    path = tmp_path / "sims.pkl"
    path.write_bytes(pickle.dumps(tree))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    place = tmp_path_factory.mktemp("sims")
    prepare(source(place), "simsv2", place / "data", storage="numpy")
    settings = {**SETTINGS, "data": str(place / "data"), "output_dir": str(place / "run")}
    return place, run_training(RunSettings.from_dict(settings))


def test_heads_of_modalities_learn_their_own_labels(trained):
    place, result = trained
    heads = result["heads"]["test"]
    assert set(heads) == {"fusion", "text", "av", "text_own", "audio_own", "vision_own"}
    assert heads["audio_own"]["corr"] > 0.9
    assert heads["vision_own"]["corr"] > 0.9
    log = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"loss_audio", "loss_vision"} <= set(next(line for line in log if line["kind"] == "train"))
    again = evaluate_adapter(place / "run" / "adapter", place / "data", "test")
    assert again["heads"]["audio_own"] == pytest.approx(heads["audio_own"], abs=1e-5)


def test_a_prediction_says_what_each_modality_says(trained):
    place, _ = trained
    predictor = SentimentPredictor.from_pretrained(place / "run" / "adapter")
    low, high = (np.full((4, 3), value, np.float32) for value in (-0.9, 0.9))
    both, heard = predictor.predict(text=["so it went"] * 2, audio=[low, high], vision=[high, None])
    assert both.modality_polarity["audio"] < both.modality_polarity["vision"]
    assert heard.modality_polarity["vision"] is None
    assert heard.to_dict()["modality_polarity"]["audio"] > both.modality_polarity["audio"]


def test_where_the_data_have_none_it_is_refused_by_name(trained, tmp_path):
    prepare(source(tmp_path, ""), "simsv2", tmp_path / "none", storage="numpy")
    settings = {**SETTINGS, "data": str(tmp_path / "none"), "output_dir": str(tmp_path / "run")}
    with pytest.raises(DataError, match=r"objective.unimodal_labels=true needs labels .* the training split has none"):
        run_training(RunSettings.from_dict(settings), dry_run=True)
    place, _ = trained
    given = {**settings, "data": str(place / "data"), "init_from": str(place / "run")}
    off = RunSettings.from_dict({**given, "objective.unimodal_labels": False})
    with pytest.raises(AdapterError, match=r"heads.modalities.*objective.unimodal_labels=True .here False"):
        run_training(off)
    (tmp_path / "a").mkdir()
    prepare(source(tmp_path / "a", "A"), "simsv2", tmp_path / "one", storage="numpy")
    alone = {**settings, "data": str(tmp_path / "one"), "modalities": ["vision"]}
    with pytest.raises(DataError, match="those of audio only, which the run leaves out"):
        run_training(RunSettings.from_dict(alone), dry_run=True)
