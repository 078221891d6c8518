"""A wheel, installed into a fresh environment, works from an empty folder: no checkout beside it."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

OLD = Path(__file__).resolve().parent / "fixtures" / "v1"


@pytest.fixture(scope="module")
def installed(repository, tmp_path_factory) -> Path:
    """The ``bin`` of an environment that holds the wheel, and sees the libraries of this one."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"  # the build writes into its source
    kept = shutil.ignore_patterns(".*", "build", "*.egg-info", "runs", "docs", "tests", "__pycache__")
    shutil.copytree(repository, source, ignore=kept)
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(place)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", str(source), *options], check=True)
    shutil.rmtree(source)
    venv.create(place / "env", with_pip=False)
    [library] = (place / "env" / "lib").glob("python*/site-packages")
    # A path that a .pth file names comes after the wheel, and its own .pth files (an editable install) are not read.
    (library / "libraries.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    [wheel] = place.glob("*.whl")
    python = place / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--no-deps", "--quiet", wheel], check=True)
    return python.parent


def run(installed: Path, folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """A command of that environment, from ``folder``, with nothing of this process' own search path."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [str(installed / str(words[0])), *map(str, words[1:])],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**environment, "PATH": f"{installed}{os.pathsep}{os.environ['PATH']}"},
    )


def test_the_package_is_the_wheels(installed, tmp_path):
    done = run(installed, tmp_path, "python", "-c", "import deepmlf_llm; print(deepmlf_llm.__file__)")
    assert Path(done.stdout.strip()).is_relative_to(installed.parent)
    assert "zero2 " in run(installed, tmp_path, "deepmlf", "configs").stdout


def test_train_dry_run(installed, tmp_path):
    options = ["--base_model", "tiny-llama", "--data", OLD / "data", "--fusion_layers", "last:2", "--ds", "zero2"]
    done = run(installed, tmp_path, "deepmlf", "train", "--dry-run", *options)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_study_plan(installed, tmp_path):
    done = run(installed, tmp_path, "deepmlf", "study", "--plan")
    assert done.returncode == 0, done.stderr
    assert "Study default:" in done.stdout


def test_a_prediction_and_a_module_that_a_launcher_starts(installed, tmp_path):
    options = ["--adapter", OLD / "adapter", "--input", OLD / "rows.jsonl"]
    done = run(installed, tmp_path, "deepmlf", "predict", *options, "--output", "polarity.jsonl")
    assert done.returncode == 0, done.stderr
    told = [json.loads(line)["polarity"] for line in (OLD / "expected.jsonl").read_text().splitlines()]
    found = [json.loads(line)["polarity"] for line in (tmp_path / "polarity.jsonl").read_text().splitlines()]
    assert found == pytest.approx(told, abs=2e-6)
    done = run(installed, tmp_path, "python", "-m", "deepmlf_llm.commands.train", "--dry-run", "--ds", "zero9")
    assert done.returncode == 2
    assert "did you mean" in done.stderr
