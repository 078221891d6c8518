"""Mirrors ``extras.py``: what is missing is said in one sentence, and a prediction needs none of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deepmlf_llm.errors import DeepMLFError, MissingPackageError
from deepmlf_llm.extras import EXTRAS, installed, missing, require

LARGE = ("asr", "demo", "faces", "lbp")  # left out of `all`: 70 to 370 MB that only clips need
OLD = Path(__file__).resolve().parent / "fixtures" / "v1"

# Blocked before anything is imported: what comes with the extras of this package.
PREDICT = """
import json, sys
for name in {blocked}:
    sys.modules[name] = None
from deepmlf_llm.commands import predict
predict.main(["--adapter", {adapter!r}, "--input", {rows!r}, "--output", {output!r}])
"""


def test_a_missing_package_is_one_sentence_with_the_pip_line(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)  # another test may have loaded it
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert not installed("sklearn")
    with pytest.raises(MissingPackageError) as raised:
        require("sklearn.metrics", "F1")
    assert str(raised.value) == "F1 needs the package scikit-learn: pip install 'deepmlf_llm[train]'"
    assert isinstance(raised.value, DeepMLFError)


def test_what_is_there_comes_back():
    assert require("scipy.special", "a test").stdtrit(10, 0.5) == pytest.approx(0, abs=1e-12)
    assert installed("scipy")


def test_a_package_that_is_there_but_broken_keeps_its_own_error(monkeypatch, tmp_path):
    (tmp_path / "h5py.py").write_text("import a_library_that_is_nowhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "h5py", raising=False)
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_nowhere"):
        require("h5py", "reading .csd")


def test_every_extra_is_one_of_the_project(repository):
    import tomllib

    extras = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for module, extra in EXTRAS.items():
        package = missing(module, "x").split("package ")[1].split(":")[0]
        assert any(line.startswith(package) for line in extras[extra]), (module, extra)
        assert (extra in extras["all"][0]) != (extra in LARGE), (module, extra)


def test_a_prediction_needs_none_of_them(tmp_path):
    output = tmp_path / "polarity.jsonl"
    places = {"adapter": str(OLD / "adapter"), "rows": str(OLD / "rows.jsonl"), "output": str(output)}
    code = PREDICT.format(blocked=sorted(EXTRAS), **places)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line)["polarity"] for line in output.read_text().splitlines()]
    told = [json.loads(line)["polarity"] for line in (OLD / "expected.jsonl").read_text().splitlines()]
    assert found == pytest.approx(told, abs=2e-6)
