from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from deepmlf_llm.errors import RunError
from deepmlf_llm.training.run_directory import RunDirectory


def directory(path: Path, fingerprint: str = "f", **settings: object) -> RunDirectory:
    return RunDirectory(path, settings or {"seed": 1}, fingerprint)


def claim(run: RunDirectory) -> None:
    with run.claimed({"processes": 1}, main=True):
        pass


def test_a_new_run_writes_its_settings_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    claim(directory(path, seed=1, gate="tanh", revision=None))
    assert yaml.safe_load((path / "config.yaml").read_text()) == {"seed": 1, "gate": "tanh"}
    assert json.loads((path / "run.json").read_text()) == {"schema": 1, "fingerprint": "f", "processes": 1}
    claim(directory(path, seed=1, gate="tanh"))


def test_another_run_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    claim(directory(tmp_path, seed=1, gate="tanh", output_dir="x"))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(RunError, match=r"holds another run \(other gate, seed\)"):
        directory(tmp_path, "g", seed=2, gate="none", output_dir="y").check()
    with pytest.raises(RunError, match="other data or number of processes"):
        directory(tmp_path, "g", seed=1, gate="tanh").check()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_what_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RunError, match="holds something that is no run"):
        directory(tmp_path).check()
    with pytest.raises(RunError, match="is a file"):
        directory(tmp_path / "thesis.tex").check()
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_processes_cannot_share_it(tmp_path: Path) -> None:
    with directory(tmp_path).claimed({}, main=True):
        with pytest.raises(RunError, match="another process is training there"):
            claim(directory(tmp_path))
    claim(directory(tmp_path))


def test_result_appears_whole_and_without_nan(tmp_path: Path) -> None:
    run = directory(tmp_path)
    assert run.finished() is None
    run.write_result({"metrics": {"corr": float("nan"), "mae": 1.0}})
    assert run.finished() == {"metrics": {"corr": None, "mae": 1.0}}
    (tmp_path / "result.json").write_text('{"metrics": ')
    with pytest.raises(RunError, match="damaged; delete it"):
        run.finished()


def test_adapter_is_replaced_as_a_whole(tmp_path: Path) -> None:
    run = directory(tmp_path)
    for content in ("old", "new"):
        run.adapter_aside.mkdir()
        (run.adapter_aside / content).write_text("")
        run.publish_adapter()
    assert [p.name for p in run.adapter.iterdir()] == ["new"]
    assert not run.adapter_aside.exists()
