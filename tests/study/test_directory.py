"""Mirrors ``deepmlf_llm/study/directory.py``."""

from __future__ import annotations

import json

import pytest

from deepmlf_llm.errors import RunError
from deepmlf_llm.study.directory import STUDY, StudyDirectory


@pytest.fixture
def plan(make_plan, make_cell):
    return make_plan([make_cell(4, 1), make_cell(8, 1)])


def test_round_trip(tmp_path, plan):
    directory = StudyDirectory(tmp_path / "study")
    with directory.claimed():
        directory.write(plan)
    directory.check("toy")
    assert directory.planned() == plan.cells
    assert directory.read()["code"] == plan.code


def test_another_studys_folder_is_refused(tmp_path, plan):
    directory = StudyDirectory(tmp_path / "study")
    with directory.claimed():
        directory.write(plan)
    with pytest.raises(RunError, match="belongs to the study 'toy', and this grid is 'other'; choose another folder"):
        directory.check("other")


def test_foreign_places_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        StudyDirectory(tmp_path / "file").check("toy")
    (tmp_path / "folder").mkdir()
    StudyDirectory(tmp_path / "folder").check("toy")  # empty: welcome
    (tmp_path / "folder" / "thesis.tex").write_text("")
    with pytest.raises(RunError, match="holds something that is not a study"):
        StudyDirectory(tmp_path / "folder").check("toy")
    with pytest.raises(RunError, match="no study there"):
        StudyDirectory(tmp_path / "none").read()


@pytest.mark.parametrize("content", ["{", "[]", "{}", json.dumps({"schema": 99})])
def test_damaged_or_newer_study_files_are_named(tmp_path, content):
    (tmp_path / STUDY).write_text(content)
    with pytest.raises(RunError, match=r"study\.json: (damaged|layout version 99)"):
        StudyDirectory(tmp_path).check("toy")


def test_two_processes_cannot_run_one_study(tmp_path):
    with StudyDirectory(tmp_path / "study").claimed():
        with pytest.raises(RunError, match="another process runs the study there"):
            with StudyDirectory(tmp_path / "study").claimed():
                pass
    with StudyDirectory(tmp_path / "study").claimed():
        pass  # free again


def test_cells_of_another_grid_are_counted(tmp_path, finished_study):
    directory = StudyDirectory(finished_study(layers=(6,), tokens=(4,), failed=0))
    names = {cell.name for cell in directory.planned()}
    assert directory.others(names) == 0
    assert directory.others(set(sorted(names)[1:])) == 1
