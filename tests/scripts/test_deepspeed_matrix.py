"""The table of docs/deepspeed.md: what it holds, and a cell of it that is run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepmlf_llm import shipped
from scripts import deepspeed_matrix


def test_the_table_has_every_stage_that_a_cpu_can_run() -> None:
    assert {*deepspeed_matrix.ENGINES, "zero3_nvme"} == set(shipped.names(shipped.DEEPSPEED))
    rows = [
        {
            "cell": "zero2-none-2",
            "save": "whole",
            "kill": "x",
            "resume": "equal to the bit",
            "other": "losses within 2e-6",
        },
        {"cell": "zero3-nf4-1", "save": "FAILED", "failed": "save: codes [2]"},
    ]
    lines = deepspeed_matrix.matrix(rows).splitlines()
    assert lines[2] == "| zero2 | none | 2 | whole | x | equal to the bit | losses within 2e-6 |"
    assert lines[3] == "| zero3 | nf4 | 1 | FAILED | not tried | not tried | not tried |"


def test_the_page_has_a_place_for_it(repository: Path) -> None:
    page = deepspeed_matrix.PAGE.read_text()
    assert page.count(deepspeed_matrix.BEGIN) == page.count(deepspeed_matrix.END) == 1


@pytest.mark.slow
def test_a_cell(repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    words = [sys.executable, str(repository / "scripts" / "deepspeed_matrix.py"), "--cells", "zero3_offload-nf4-1"]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run([*words, "--output", str(out)], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(out.read_text())[0]["resume"] == "equal to the bit"
