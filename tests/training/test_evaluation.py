from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.data.demo import embedded_dataset
from deepmlf_llm.data.labelled import check_prepared
from deepmlf_llm.data.store import open_store
from deepmlf_llm.errors import DataError
from deepmlf_llm.training.evaluation import evaluate_adapter
from deepmlf_llm.training.run import run_training
from deepmlf_llm.training.settings import RunSettings
from tests.devices import rounding


def test_an_adapter_on_disk_gives_the_metrics_of_its_run(
    toy_settings: Callable[..., RunSettings], tmp_path: Path
) -> None:
    data = str(embedded_dataset(tmp_path / "cache", sizes=(24, 8, 10)))
    result = run_training(toy_settings(data=data, max_steps=3, text__template="{text} Sentiment:"))
    for split, name in (("valid", "validation"), ("test", "test")):
        found = evaluate_adapter(tmp_path / "run" / "adapter", data, split, batch_size=3)
        assert found["metrics"] == pytest.approx(result["metrics"][name], abs=rounding(1e-5), nan_ok=True)
        assert found["heads"].keys() == {"fusion", "text", "av"}
    assert found["utterances"] == 10
    assert found["notes"] == []
    with pytest.raises(DataError, match="no split 'tset'"):
        evaluate_adapter(tmp_path / "run" / "adapter", data, "tset")


def test_features_that_differ_are_refused_together(tmp_path: Path) -> None:
    store = open_store(embedded_dataset(tmp_path, sizes=(8, 4, 4)))
    facts = {**store.modalities, "smell": {"dim": 3}}
    facts["audio"] = {**facts["audio"], "dim": 7, "features": {"kind": "b"}}
    store.modalities["audio"]["features"] = {"kind": "a"}
    trained = DeepMLFConfig(
        modalities={n: {k: v for k, v in f.items() if k != "standardisation"} for n, f in facts.items()}, dataset="sims"
    )
    with pytest.raises(DataError) as caught:
        check_prepared(store, trained)
    for part in ("labels of 'mosi'", "'audio' has 16 dimensions, expected 7", "another feature recipe", "no 'smell'"):
        assert part in str(caught.value)
