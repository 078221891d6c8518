from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from deepmlf_llm.data.demo import embedded_dataset
from deepmlf_llm.data.store import open_store
from deepmlf_llm.model.merging import merge_adapter
from deepmlf_llm.training.run import run_training
from deepmlf_llm.training.settings import RunSettings


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, float]]:
    root = tmp_path_factory.mktemp("trained")
    data = str(embedded_dataset(root, sizes=(16, 8, 8)))
    settings = {
        "base_model": "tiny-llama",
        "fusion_layers": [3],
        "num_fusion_tokens": 2,
        "max_steps": 2,
        "batch_size": 8,
    }
    result = run_training(
        RunSettings.from_dict({**settings, "data": data, "output_dir": str(root / "run"), "report_to": "none"})
    )
    return root / "run" / "adapter", data, result["metrics"]["test"]


@pytest.fixture
def evaluate(in_process: Any) -> Any:
    return partial(in_process, "evaluate")


def test_writes_the_metrics_of_one_split(
    evaluate: Any,
    trained: tuple[Path, str, dict[str, float]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    adapter, data, expected = trained
    output = tmp_path / "test.json"
    words = ("--adapter", str(adapter), "--data", data, "--split", "test", "--output", str(output))
    assert evaluate(*words) == 0
    found = json.loads(output.read_text())
    assert found["metrics"]["mae"] == pytest.approx(expected["mae"], abs=1e-5)
    assert found["metrics"].keys() == expected.keys()
    assert f"{expected['mae']:.4f}" in capsys.readouterr().out
    before = output.read_bytes()
    assert evaluate(*words) == 2
    assert "test.json: exists; move it away" in capsys.readouterr().err
    assert output.read_bytes() == before
    output.unlink()
    output.with_suffix(".parquet").unlink()
    assert evaluate(*words) == 2
    assert "test.confusion.svg: exists; move it away" in capsys.readouterr().err

    merged = str(tmp_path / "merged")
    merge_adapter(adapter, merged)
    again = tmp_path / "merged.json"
    assert evaluate("--adapter", merged, "--data", data, "--split", "test", "--output", str(again)) == 0
    assert json.loads(again.read_text())["metrics"]["mae"] == pytest.approx(expected["mae"], abs=1e-5)
    assert evaluate("--adapter", merged, "--data", data, "--base_model", "tiny-llama") == 2
    assert "it has its base inside" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--split", "tset"), "no split 'tset'"),
        (("--adapter", "nowhere"), "nowhere"),
        (("--data", "nowhere"), "nowhere"),
        (("--output", "no/such/place.json"), "its directory is not there"),
        (("--batch_size", "0"), "--batch_size=0"),
        (("--bach_size", "1"), "--batch_size"),
        (("--num_layers", "2"), "--num_layers"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    evaluate: Any,
    trained: tuple[Path, str, dict[str, float]],
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    adapter, data, _ = trained
    assert evaluate("--adapter", str(adapter), "--data", data, *words) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(errors) == 1
    assert message in errors[0]


@pytest.mark.parametrize("words", [(), ("--base_model", "tiny-llama")])
def test_the_base_is_loaded_in_what_the_adapter_was_trained_on(
    evaluate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    import deepmlf_llm.backbones as room
    import deepmlf_llm.model.loading
    import deepmlf_llm.model.peft_model
    from deepmlf_llm.config.method import DeepMLFConfig

    data = embedded_dataset(tmp_path, sizes=(8, 8, 8))
    store = open_store(data)
    config = DeepMLFConfig(fusion_layers=[3], modalities=store.modalities, dataset=store.manifest.dataset)
    base = room.load_base_model("tiny-llama", quantization="nf4")
    deepmlf_llm.model.peft_model.DeepMLFModel(base, config).save_pretrained(tmp_path / "adapter")
    loaded, load = [], room.load_base_model

    def noted(name: str, quantization: str = "none", *rest: Any, **options: Any) -> Any:
        loaded.append(quantization)
        return load(name, quantization, *rest, **options)

    for module in (room, deepmlf_llm.model.loading):
        monkeypatch.setattr(module, "load_base_model", noted)
    words = ("--adapter", str(tmp_path / "adapter"), "--data", str(data), *words)
    assert evaluate(*words) == 0
    assert loaded == ["nf4"]
    assert evaluate(*words, "--quantization", "none") == 0
    assert loaded == ["nf4", "none"]
