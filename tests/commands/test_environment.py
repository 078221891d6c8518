"""A recipe that is started outside its environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deepmlf_llm.commands import environment

RECIPES = sorted(path.stem for path in (Path(__file__).resolve().parents[2] / "recipes").glob("*.py"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_outside_says_which_environment_to_enter(recipe, repository, tmp_path):
    """-S leaves out site-packages: this interpreter, without anything installed."""
    command = [sys.executable, "-E", "-S", str(repository / "recipes" / f"{recipe}.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: this Python ({sys.executable}) has no torch, transformers, ")
    assert ".venv/bin/activate" in line
    assert "pip install -e" in line


def test_nothing_is_said_inside(capsys):
    environment.check_environment()
    assert capsys.readouterr() == ("", "")


def test_an_old_python_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 9, 2, "final", 0))
    with pytest.raises(SystemExit) as ended:
        environment.check_environment()
    assert ended.value.code == 2
    assert "Python 3.9 (" in capsys.readouterr().err


def test_what_is_not_made_yet_is_made_first(monkeypatch, tmp_path, capsys):
    folder = tmp_path / "deepmlf_llm" / "commands"
    monkeypatch.setattr(environment, "__file__", str(folder / "environment.py"))
    monkeypatch.setattr(environment, "NEEDED", ("torch", "no_such_package"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        environment.check_environment()
    assert "has no no_such_package: install deepmlf_llm with its dependencies" in capsys.readouterr().err
    (tmp_path / "pyproject.toml").touch()
    assert environment.advice().startswith("make one with `make setup` and enter")
    assert environment.advice().endswith(
        'source .venv/bin/activate (or, into an environment of your own: pip install -e ".[all]")'
    )
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    assert environment.advice().startswith("enter the environment of this checkout: source .venv/bin/activate")


def test_whether_it_is_entered(monkeypatch, tmp_path):
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    assert not environment.entered(tmp_path)
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path))
    assert environment.entered(tmp_path)
    assert not environment.entered(tmp_path / "other")
