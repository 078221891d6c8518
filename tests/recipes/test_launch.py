"""``recipes/launch``: the scripts are sound, and two of them, as two machines would start them, make one run."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from .test_train_llama import DEADLINE, data, environment, free_port, small  # noqa: F401

SCRIPTS = ("torchrun.sh", "deepspeed.sh", "slurm.sbatch")
SLURM = {
    "scontrol": 'case $1 in show) printf "node7\\nnode8\\n" ;; *) echo "$*" >>requeued ;; esac',
    "srun": """
        while [[ $1 == --* ]]; do shift; done
        for SLURM_PROCID in 0 1; do export SLURM_PROCID; "$@"; code=$?; done; exit $code""",
    "python": 'echo "$MASTER_ADDR $WORLD_SIZE $RANK $LOCAL_RANK $LOCAL_WORLD_SIZE $*" >>started; exit "$CODE"',
}
"""Stand-ins for the commands that the SLURM script calls: two tasks on two machines, one after the other."""
SSH = {"ssh": "echo 10.0.0.7", "pdsh": 'printf "%s\\n" "$@" >asked'}
"""Those by which the deepspeed command reaches other machines: what it would start there is written down."""


def stand_in(folder: Path, commands: dict[str, str]) -> str:
    """Puts them into a folder: the PATH that finds them first."""
    for name, text in commands.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    return f"{folder}{os.pathsep}{environment()['PATH']}"


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_sound(repository: Path, name: str) -> None:
    script = repository / "recipes" / "launch" / name
    assert subprocess.run([shutil.which("bash") or "bash", "-n", str(script)]).returncode == 0
    text = script.read_text()
    assert "deepmlf_llm.commands.train" in text
    assert '"$@"' in text


@pytest.mark.parametrize(("code", "again"), [(0, False), (2, False), (75, True), (137, True), (138, True), (143, True)])
def test_slurm_starts_each_task_and_queues_again_what_can_go_on(
    repository: Path, tmp_path: Path, code: int, again: bool
) -> None:
    own = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "31", "CODE": str(code)}
    own |= {"PATH": stand_in(tmp_path, SLURM)}
    script = repository / "recipes" / "launch" / "slurm.sbatch"
    done = subprocess.run(["bash", script, "--data", "a set"], cwd=tmp_path, env={**os.environ, **own})
    assert done.returncode == code
    words = "-m deepmlf_llm.commands.train --ds zero2 --data a set"
    assert (tmp_path / "started").read_text().splitlines() == [f"node7 2 {rank} 0 1 {words}" for rank in (0, 1)]
    requeued = tmp_path / "requeued"
    assert (requeued.read_text() if requeued.exists() else "") == ("requeue 31\n" if again else "")


@pytest.mark.slow
def test_the_deepspeed_command_asks_every_machine_of_the_hostfile(repository: Path, tmp_path: Path) -> None:
    launch = repository / "recipes" / "launch"
    own = {"HOSTFILE": str(launch / "hostfile"), "PORT": "29512", "PATH": stand_in(tmp_path, SSH)}
    words = ["bash", str(launch / "deepspeed.sh"), "--data", "set"]
    subprocess.run(words, cwd=tmp_path, env={**environment(), **own}, check=True, capture_output=True, timeout=DEADLINE)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[asked.index("-w") + 1] == "node0,node1"
    (world,) = [word.removeprefix("--world_info=") for word in asked if word.startswith("--world_info=")]
    slots = list(range(8))
    assert json.loads(base64.urlsafe_b64decode(world)) == {"node0": slots, "node1": slots}
    assert {"--node_rank=%n", "--master_addr=10.0.0.7", "--master_port=29512", "--module"} <= set(asked)
    assert asked[-5:] == ["deepmlf_llm.commands.train", "--ds", "zero2", "--data", "set"]


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
