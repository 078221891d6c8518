from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deepmlf_llm.config.method import ModalityConfig
from deepmlf_llm.data.demo import embedded_dataset
from deepmlf_llm.errors import DataError
from deepmlf_llm.training.evaluation import check_features, evaluate_adapter
from deepmlf_llm.training.run import run_training
from deepmlf_llm.training.settings import RunSettings


def test_an_adapter_on_disk_gives_the_metrics_of_its_run(
    toy_settings: Callable[..., RunSettings], tmp_path: Path
) -> None:
    data = str(embedded_dataset(tmp_path / "cache", sizes=(24, 8, 10)))
    result = run_training(toy_settings(data=data, max_steps=3, text__template="{text} Sentiment:"))
    for split, name in (("valid", "validation"), ("test", "test")):
        found = evaluate_adapter(tmp_path / "run" / "adapter", data, split, batch_size=3)
        assert found["metrics"] == pytest.approx(result["metrics"][name], abs=1e-5, nan_ok=True)
        assert found["heads"].keys() == {"fusion", "text", "av"}
    assert found["utterances"] == 10
    assert found["notes"] == []
    with pytest.raises(DataError, match="no split 'tset'"):
        evaluate_adapter(tmp_path / "run" / "adapter", data, "tset")


def test_features_that_differ_are_refused_together() -> None:
    def facts(**changes: Any) -> dict[str, Any]:
        return {"dim": 5, "frame_rate": None, "features": {"kind": "a"}, "standardisation": {"mean": [0]}, **changes}

    trained = {name: ModalityConfig(**facts()) for name in ("audio", "vision")}
    config = SimpleNamespace(modalities=trained, dataset="mosi")
    same = {"audio": facts(), "vision": facts(), "other": facts(dim=1)}
    assert check_features(config, same, "mosi") == []
    notes = check_features(config, {**same, "audio": facts(standardisation={"mean": [1]})}, "mosi")
    assert notes == ["'audio' is standardised by these data's own training split, not by the adapter's"]
    with pytest.raises(DataError) as caught:
        check_features(config, {"audio": facts(dim=6, features={"kind": "b"})}, "sims")
    for part in ("labels of 'sims'", "'audio' has 6 dimensions, expected 5", "another feature recipe", "no 'vision'"):
        assert part in str(caught.value)
