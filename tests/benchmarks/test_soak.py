"""A piece of the soak is run; all of it takes an hour."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_three_faults_lose_nothing(repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    words = ["--points", "3", "--minutes", "3", "--worlds", "one process", "--seed", "1", "--output", str(out)]
    command = [sys.executable, str(repository / "benchmarks" / "soak.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["wrong"] == []
    assert len(found["points"]) >= 3
    assert "| faults | step | write | rename | full disk |" in done.stdout
