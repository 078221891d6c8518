"""Small data and settings: a run takes seconds on one core."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import Dataset

from deepmlf_llm.adapters import files
from deepmlf_llm.tasks import metrics
from deepmlf_llm.training import assemble, run, scores
from deepmlf_llm.training.data import TrainingData
from deepmlf_llm.training.settings import RunSettings

DIMS = {"audio": 5, "vision": 4}
QUICK_RUN: dict[str, Any] = {
    "base_model": "tiny-llama",
    "batch_size": 8,
    "fusion_layers": [1, 3],
    "num_fusion_tokens": 2,
    "av_encoder.num_layers": 1,
    "av_encoder.dropout": 0.0,
    "learning_rate": 1e-2,
    "warmup_epochs": 0,
    "report_to": "none",
}
"""Settings of a run that learns within a few epochs of 24 utterances."""


class Utterances(Dataset[dict[str, Any]]):
    """A plain torch data set whose audio says the label, with some modalities absent."""

    def __init__(self, size: int, seed: int, absent: Callable[[int], tuple[str, ...]] | None = None) -> None:
        random = np.random.default_rng(seed)
        self.items = []
        for i in range(size):
            label = float(np.round(random.uniform(-3, 3), 1))
            item: dict[str, Any] = {
                "id": str(i),
                "text": "so " * int(random.integers(1, 6)) + "it went",
                "label": label,
            }
            for name, dim in DIMS.items():
                frames = random.normal(size=(int(random.integers(1, 7)), dim)).astype(np.float32)
                frames[:, 0] += label * (name == "audio")
                item[name] = frames[:0] if absent and name in absent(i) else frames
            self.items.append(item)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index]


@pytest.fixture
def toy_data() -> TrainingData:
    """40 + 12 + 12 utterances as plain torch data sets."""
    parts = {
        name: Utterances(size, seed) for seed, (name, size) in enumerate((("train", 40), ("valid", 12), ("test", 12)))
    }
    return TrainingData(**parts, modalities={name: {"dim": dim} for name, dim in DIMS.items()}, fingerprint="toy")


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of a test draw nothing, which takes a third of the time of so small a run. Those of a module's fixture do
    (test_robustness.py)."""
    monkeypatch.setattr(scores, "write_plots", lambda *_: None)


@pytest.fixture
def cheap_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without what else takes the time of so small a run: the disk at each checkpoint, F1 of scikit-learn four
    times an evaluation, and at the end intervals, versions and the state of the checkout."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(metrics, "_weighted_f1", metrics._accuracy)
    monkeypatch.setattr(files, "package_versions", dict)
    monkeypatch.setattr(run, "environment", dict)
    monkeypatch.setattr(assemble, "check_before_loading", lambda *_: None)
    monkeypatch.setattr(scores, "metric_intervals", lambda *_: {})


@pytest.fixture
def toy_settings(tmp_path: Path) -> Callable[..., RunSettings]:
    """Settings of a run of ten steps on tiny-llama; keywords override them (dots as double underscores)."""

    def make(**changes: Any) -> RunSettings:
        values: dict[str, Any] = {
            "base_model": "tiny-llama",
            "output_dir": str(tmp_path / "run"),
            "batch_size": 8,
            "num_train_epochs": 2,
            "fusion_layers": [1, 3],
            "num_fusion_tokens": 3,
            "av_encoder.num_layers": 1,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "report_to": "none",
        }
        values.update({name.replace("__", "."): value for name, value in changes.items()})
        return RunSettings.from_dict(values)

    return make
