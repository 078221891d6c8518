"""The recipe as a user runs it."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

RANGE = {"train": 6, "valid": 3, "test": 3}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tree = {
        split: {
            "id": [f"{split}$_${row}" for row in range(rows)],
            "raw_text": ["I LIKE IT"] * rows,
            "audio": np.random.default_rng(rows).normal(size=(rows, 4, 3)).astype(np.float32),
            "audio_lengths": [4, *range(rows - 1)][:rows] if rows < 5 else [4] * rows,
            "regression_labels": np.linspace(-3, 3, rows),
        }
        for split, rows in RANGE.items()
    }
    path = tmp_path / "source.pkl"
    path.write_bytes(pickle.dumps(tree))
    return path


@pytest.fixture
def recipe(in_empty_directory):
    return partial(in_empty_directory, "prepare_data")


def test_runs_as_a_script(repository, source, tmp_path):
    command = [sys.executable, repository / "recipes" / "prepare_data.py", "--dataset", "mosi", "--source"]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    for path, code in (("source.pkl", 0), ("nowhere.pkl", 2)):
        out = ["--out", str(tmp_path / f"out{code}")]
        done = subprocess.run(
            [*command, path, *out], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=200
        )
        assert done.returncode == code, done.stderr
        assert done.stderr == ("" if code == 0 else "error: nowhere.pkl: no such file or folder\n")
        assert (tmp_path / f"out{code}").exists() is (code == 0)


def test_prepares_and_reports(recipe, source, tmp_path):
    done = recipe("--source", source, "--dataset", "mosi", "--out", "data/mosi", "--frame-rate", "audio=5")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for words in ("6 utterances", "case lower", "3 dims at 5 Hz", "valid 1, test 1", "0 NaN"):
        assert words in " ".join(done.stdout.split())
    manifest = json.loads((tmp_path / "data" / "mosi" / "manifest.json").read_text())
    assert manifest["modalities"]["audio"]["frame_rate"] == 5


def test_json_and_all_settings(recipe, source, tmp_path):
    done = recipe(
        *("--source", source, "--dataset", "mosei", "--out", "out", "--case", "sentence", "--clip", "0"),
        *("--modalities", "audio", "--storage", "numpy", "--standardise", "video", "--json"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert json.loads(done.stdout)["settings"] == {
        "case": "sentence",
        "clip": None,
        "modalities": ["audio"],
        "frame_rates": {},
        "standardised_by": "video",
    }


class Attack:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sourse", "x"], "unknown option --sourse (did you mean '--source'?)"),
        (["--source", "nowhere.pkl"], "nowhere.pkl: no such file or folder"),
        (["--source", "attack.pkl"], "refused: it refers to posix.system"),
        (["--source", "source.pkl", "--dataset", "sims"], "labels are not numbers in [-1, 1]"),
        (["--source", "source.pkl", "--dataset", "mosie"], "did you mean 'mosi'?"),
        (["--source", "source.pkl", "--frame-rate", "audio=fast"], "audio=fast: expected a number of Hz"),
        (["--source", "source.pkl", "--modalities", "vision"], "no modality 'vision'; there are audio"),
    ],
)
def test_bad_input_is_one_line_code_2_and_nothing_written(recipe, source, tmp_path, arguments, message):
    (tmp_path / "attack.pkl").write_bytes(pickle.dumps({"train": Attack()}))
    defaults = [] if "--dataset" in arguments else ["--dataset", "mosi"]
    done = recipe(*arguments, *defaults, "--out", "out")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attack.pkl", "source.pkl"]


def test_help_names_units_and_defaults(recipe):
    done = recipe("--help")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    for words in ("standard deviations", "default: 10", "HZ", "lower for mosi"):
        assert words in text


def test_the_real_file_takes_seconds(recipe, shared_dir, tmp_path):
    real = shared_dir / "data" / "mosi_sequence_whisper.pkl"
    if not real.is_file():
        pytest.skip("needs the MOSI files in the reference data")
    done = recipe("--source", real, "--dataset", "mosi", "--out", "out", "--frame-rate", "audio=5", "vision=10")
    assert done.returncode == 0, done.stderr
    assert "512 dims at 5 Hz" in done.stdout
