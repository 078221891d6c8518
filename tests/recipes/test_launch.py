"""``recipes/launch``: the scripts are sound, and two of them, as two machines would start them, make one run."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from .test_train_llama import DEADLINE, data, environment, free_port, small  # noqa: F401

SCRIPTS = ("torchrun.sh", "deepspeed.sh", "slurm.sbatch")


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_sound(repository: Path, name: str) -> None:
    script = repository / "recipes" / "launch" / name
    assert subprocess.run([shutil.which("bash") or "bash", "-n", str(script)]).returncode == 0
    text = script.read_text()
    assert "deepmlf_llm.commands.train" in text
    assert '"$@"' in text


@pytest.mark.slow
def test_two_machines_make_one_run(repository: Path, data: str, tmp_path: Path) -> None:  # noqa: F811
    """Both on this one: each by the script, with its own number."""
    script, port = str(repository / "recipes" / "launch" / "torchrun.sh"), free_port()
    started = []
    for rank in (0, 1):
        own = {"NODES": "2", "NODE_RANK": str(rank), "GPUS": "1", "PORT": port, "PYTHONPATH": str(repository)}
        words = ["bash", script, *small(data, max_steps=2)]
        started.append(
            subprocess.Popen(
                words, cwd=tmp_path, env={**environment(), **own}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        )
    said = [process.communicate(timeout=DEADLINE)[0].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    train = json.loads((tmp_path / "run" / "result.json").read_text())["train"]
    assert (train["processes"], train["launcher"]) == (2, "torchrun")
