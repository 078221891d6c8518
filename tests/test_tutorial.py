"""docs/tutorial.md is run: every block in its order, in one empty folder."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from deepmlf_llm.commands.cli import COMMANDS, main

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", PAGE, re.DOTALL)


def commands(block: str) -> list[list[str]]:
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]


@pytest.mark.timeout(280)
def test_the_page_runs_from_the_folder_to_the_merged_model(tmp_path, monkeypatch):
    """In this process: each command of its own would spend most of its time on imports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")  # a run sets it; given back afterwards
    for kind, block in BLOCKS:
        if kind == "python":
            exec(compile(block, "docs/tutorial.md", "exec"), {})
            continue
        for program, *words in commands(block):
            assert program == "deepmlf"
            monkeypatch.setattr("sys.argv", [program, *words])
            assert main(words) == 0, words
    assert (tmp_path / "merged").is_dir()
    metrics = json.loads((tmp_path / "test.json").read_text())["metrics"]
    assert metrics["corr"] > 0.5  # the words alone say nothing: it has learned from the features
    assert len((tmp_path / "polarity.jsonl").read_text().splitlines()) == 2


def test_its_commands_are_those_of_the_program_in_order():
    shown = [words[1] for kind, block in BLOCKS if kind == "bash" for words in commands(block)]
    assert shown == ["prepare", "train", "evaluate", "predict", "merge"]
    assert set(shown) <= COMMANDS.keys()
