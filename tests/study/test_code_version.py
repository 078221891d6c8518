"""Mirrors ``deepmlf_llm/study/code_version.py``."""

from __future__ import annotations

import shutil

import pytest

import deepmlf_llm
from deepmlf_llm.study.code_version import code_version, combined


@pytest.fixture
def copy(repository, tmp_path, monkeypatch):
    """The package, to be edited."""
    package = tmp_path / "deepmlf_llm"
    shutil.copytree(repository / "deepmlf_llm", package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(deepmlf_llm, "__file__", str(package / "__init__.py"))
    recipe = tmp_path / "train.py"
    recipe.write_text("print('trains')\n")
    return package, recipe


def test_changes_with_code_that_trains(copy):
    package, recipe = copy
    before = code_version(recipe)
    path = package / "modules" / "heads.py"
    path.write_text(path.read_text().replace("nn.ReLU()", "nn.GELU()"))
    changed = code_version(recipe)
    assert changed != before
    recipe.write_text("print('trains otherwise')\n")
    assert code_version(recipe) not in (before, changed)


def test_comments_docstrings_and_reports_do_not_count(copy):
    package, recipe = copy
    before = code_version(recipe)
    path = package / "modules" / "heads.py"
    path.write_text(path.read_text().replace('"""Task, fusion, text and AV heads.', '"""Heads.\n') + "\n\n# a remark\n")
    (package / "study" / "report.py").write_text("")
    (package / "commands" / "shell.py").write_text("")
    recipe.write_text("print(\n    'trains'  # and how\n)\n")
    assert code_version(recipe) == before


def test_combined_keeps_its_parts_apart():
    assert combined("a", "b") != combined("ab") != combined("b", "a")
