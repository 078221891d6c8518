from __future__ import annotations

import os
from pathlib import Path

import pytest

from deepmlf_llm.files import write_aside
from deepmlf_llm.training import checkpoints


def make(run: Path, step: int, whole: bool = True) -> Path:
    directory = run / f"checkpoint-{step}"
    (directory / "global_step").mkdir(parents=True)
    (directory / "adapter_model.safetensors").write_bytes(b"weights %d" % step)
    (directory / "global_step" / "optimizer.pt").write_bytes(b"state")
    if whole:
        checkpoints.commit(directory, {"step": step})
    return directory


def test_newest_whole_one_is_found_and_the_others_named(tmp_path: Path) -> None:
    make(tmp_path, 9)
    newest = make(tmp_path, 20)
    cut, damaged = make(tmp_path, 30, whole=False), make(tmp_path, 100)
    (damaged / "global_step" / "optimizer.pt").write_bytes(b"State")
    found, skipped = checkpoints.newest_whole(tmp_path)
    assert found == newest
    assert skipped == {damaged: "global_step/optimizer.pt is damaged", cut: "it was cut while being written"}


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "{", "[]", '{"files": [1]}', '{"files": {"a": 1}}'])
def test_any_damage_is_seen(tmp_path: Path, damage: str) -> None:
    directory = make(tmp_path, 1)
    file = directory / "adapter_model.safetensors"
    if damage == "truncate":
        os.truncate(file, 3)
    elif damage == "flip":
        file.write_bytes(b"Weights 1")
    elif damage == "remove":
        file.unlink()
    else:
        (directory / checkpoints.MANIFEST).write_text(damage)
    assert checkpoints.flaw(directory)
    assert checkpoints.newest_whole(tmp_path)[0] is None


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (2, 10, 4, 8, 6):
        make(tmp_path, step)
    checkpoints.prune(tmp_path, keep=2, best_step=4)
    assert [checkpoints.step_of(p) for p in checkpoints.all_checkpoints(tmp_path)] == [10, 8, 4]
    checkpoints.prune(tmp_path, keep=None, best_step=None)
    assert len(checkpoints.all_checkpoints(tmp_path)) == 3


def test_nothing_else_is_taken_for_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-3").write_text("a file")
    assert checkpoints.newest_whole(tmp_path) == (None, {})
    assert checkpoints.newest_whole(tmp_path / "not there") == (None, {})


def test_writing_aside_replaces_whole_files_only(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_aside(path, "old")
    write_aside(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
