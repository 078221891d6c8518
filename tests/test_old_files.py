"""Files of the first layout go on working: an adapter, a data directory and a cut run, made at version 0.1 (e7ae25f).

``fixtures/v1`` was made by that version's recipes on a toy: ``prepare_data.py --source toy.pkl --dataset mosi --out
data``, ``train_llama.py --config config.yaml``, once to its end (``adapter``, ``expected.jsonl``), once killed after
step 4 (``run``). Its audio has more frames than the AV context, so the order of pooling and layers shows.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from deepmlf_llm import SentimentPredictor
from deepmlf_llm.commands import evaluate, train

OLD = Path(__file__).resolve().parent / "fixtures" / "v1"


def test_old_adapter_predicts_what_it_predicted():
    rows = [json.loads(line) for line in (OLD / "rows.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in (OLD / "expected.jsonl").read_text().splitlines()]
    predictor = SentimentPredictor.from_pretrained(OLD / "adapter")
    found = predictor.predict(**{key: [row[key] for row in rows] for key in ("text", "audio", "vision")})
    for prediction, told in zip(found, expected, strict=True):
        assert prediction.label == told["label"]
        for head in ("polarity", "text_polarity", "av_polarity", "fusion_polarity"):
            assert getattr(prediction, head) == pytest.approx(told[head], abs=2e-6), head


@pytest.mark.cpu  # a figure that a CPU has made
def test_old_adapter_and_data_are_evaluated(tmp_path):
    output = tmp_path / "test.json"
    evaluate.main([*words(adapter=OLD / "adapter", data=OLD / "data", split="test"), "--output", str(output)])
    assert json.loads(output.read_text())["metrics"]["mae"] == pytest.approx(0.56822, abs=1e-5)


@pytest.mark.cpu  # weights that a CPU has made
def test_old_run_goes_on_to_the_adapter_that_it_would_have_made(tmp_path, monkeypatch):
    for name in ("run", "data", "config.yaml"):
        source, target = OLD / name, tmp_path / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    monkeypatch.chdir(tmp_path)
    train.main(["--config", "config.yaml"])
    made, told = (
        load_file(place / "adapter_model.safetensors") for place in (tmp_path / "run" / "adapter", OLD / "adapter")
    )
    assert made.keys() == told.keys()
    for name, tensor in made.items():
        assert tensor == pytest.approx(told[name], abs=_two_steps(name)), name
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["metrics"]["test"]["mae"] == pytest.approx(0.56822, abs=1e-5)


def _two_steps(name: str) -> float:
    """How far two steps may differ between CPUs.

    Batch norm takes away what the bias in front of it adds, so its gradient is rounding alone, which Adam brings to the
    size of any other: 3e-5 apart on a CPU without AMX, where the two steps moved it by 2.6e-4.
    """
    return 1e-4 if name.endswith("heads.task.1.bias") else 2e-5


def words(**options: object) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]
