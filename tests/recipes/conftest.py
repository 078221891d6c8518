"""Recipes in this process, as ``python recipes/NAME.py`` runs them."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import Done


@pytest.fixture
def in_process(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs a recipe by name and returns its exit code."""

    def run(name: str, *words: object) -> int:
        recipe = str(repository / "recipes" / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [recipe, *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(recipe, run_name="__main__")
        return int(str(ended.value.code or 0))

    return run


@pytest.fixture
def in_empty_directory(
    in_process: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """The same in an empty directory, with what the recipe printed."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *words: object) -> Done:
        return Done(in_process(name, *words), *capsys.readouterr())

    return run
