from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deepmlf_llm.data.demo import embedded_dataset
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


def evaluate(repository: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(repository / "recipes" / "evaluate.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=280)


def test_writes_the_metrics_of_one_split(
    repository: Path, trained: tuple[Path, str, dict[str, float]], tmp_path: Path
) -> None:
    adapter, data, expected = trained
    output = tmp_path / "test.json"
    done = evaluate(repository, "--adapter", str(adapter), "--data", data, "--split", "test", "--output", str(output))
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert found["metrics"]["mae"] == pytest.approx(expected["mae"], abs=1e-5)
    assert found["metrics"].keys() == expected.keys()
    assert f"{expected['mae']:.4f}" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--split", "tset"), "no split 'tset'"),
        (("--adapter", "nowhere"), "nowhere"),
        (("--data", "nowhere"), "nowhere"),
        (("--output", "no/such/place.json"), "its directory is not there"),
        (("--batch_size", "0"), "--batch_size=0"),
        (("--bach_size", "1"), "--batch_size"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    repository: Path, trained: tuple[Path, str, dict[str, float]], words: tuple[str, ...], message: str
) -> None:
    adapter, data, _ = trained
    done = evaluate(repository, "--adapter", str(adapter), "--data", data, *words)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(errors) == 1, done.stderr
    assert message in errors[0]
