"""Mirrors ``deepmlf_llm/study/executors.py``, with an ``sbatch`` and an ``ssh`` that only do as if."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from deepmlf_llm.errors import ConfigError, RunError
from deepmlf_llm.study.executors import Host, Hosts, Local, NodeCommand, Slurm, passed_on, read_hostfile

# Where Python would be: the guard is passed over, the words are written down, and what $THEN says happens.
NODE = """#!/usr/bin/env bash
case "$1" in *guard.py) shift 2 ;; esac
printf '%s\\n' "$PWD" "$MARK" "$@" > "$SEEN.$BASHPID"
eval "${THEN:-exit 0}"
"""
# Options, the host and the command; the remote shell of host "away" is not reached.
SSH = """#!/usr/bin/env bash
while [ "$1" = -o ]; do echo "$2" >> "$SEEN.options"; shift 2; done
[ "$1" = away ] && { echo "ssh: connect to host away: No route to host" >&2; exit 255; }
exec bash -c "$2"
"""
SBATCH = """#!/usr/bin/env bash
[ "$1" = --parsable ] || exit 9
[ -z "${REFUSED:-}" ] || { echo "sbatch: error: invalid partition" >&2; exit 1; }
bash -n "$2" && echo 4711
"""
SCONTROL = '#!/usr/bin/env bash\necho "$@" >> "$SEEN.scontrol"\n'


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Programs on PATH, and the command of a node."""
    place = tmp_path / "bin"
    place.mkdir()
    for name, text in {"node": NODE, "ssh": SSH, "sbatch": SBATCH, "scontrol": SCONTROL}.items():
        (place / name).write_text(text)
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    where = tmp_path / "a place"
    where.mkdir()
    words = [str(place / "node"), "-m", "deepmlf_llm.commands.study", "--output", "it's; rm -rf $HOME"]
    return NodeCommand(words, tmp_path / "study", "toy", where, {"MARK": "a b"})


def seen(folder: Path) -> list[list[str]]:
    return [path.read_text().splitlines() for path in sorted(folder.glob("seen.[0-9]*"))]


def run(script: Path, **variables: str) -> int:
    given = {**os.environ, "SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": "1", **variables}
    return subprocess.run(["bash", str(script)], env=given, timeout=30).returncode


def test_local_does_the_work_here(machine):
    assert Local(lambda: 7).start(machine) == 7
    assert "in this process" in Local(lambda: 7).shown(machine)


def test_slurm_submits_an_array_whose_jobs_are_nodes(machine, tmp_path, capsys):
    executor = Slurm(3, ["--gpus=1", "--time=12:00:00"])
    assert executor.start(machine) == 0
    assert "submitted 3 nodes as job 4711" in capsys.readouterr().out
    script = tmp_path / "study" / "nodes" / "slurm.sbatch"
    text = script.read_text()
    assert text == executor.shown(machine)  # of a dry run
    options = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert {"--job-name=study-toy", "--array=0-2", "--gpus=1", "--time=12:00:00", "--requeue"} <= set(options)
    assert text.index("#SBATCH --time") < text.index("set -uo")  # sbatch reads no option behind a command
    assert run(script) == 0
    assert seen(tmp_path) == [[str(machine.where), "a b", *machine.words[1:]]]


def test_a_job_that_was_cut_is_queued_again_and_one_that_failed_is_not(machine, tmp_path):
    Slurm(2).start(machine)
    script = tmp_path / "study" / "nodes" / "slurm.sbatch"
    assert run(script, THEN="exit 2") == 2
    assert not (tmp_path / "seen.scontrol").exists()
    assert run(script, THEN="exit 143") == 143
    assert (tmp_path / "seen.scontrol").read_text() == "requeue 4711_1\n"


def test_a_job_passes_on_that_its_time_is_up(machine, tmp_path):
    Slurm(2).start(machine)
    given = {**os.environ, "SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": "0"}
    given["THEN"] = "trap 'kill $!; exit 143' TERM; sleep 60 & wait"
    job = subprocess.Popen(["bash", str(tmp_path / "study" / "nodes" / "slurm.sbatch")], env=given)
    while not seen(tmp_path):
        time.sleep(0.01)
    time.sleep(0.2)
    job.terminate()
    assert job.wait(10) == 143
    assert (tmp_path / "seen.scontrol").read_text() == "requeue 4711_0\n"


def test_what_slurm_refuses_is_said(machine, monkeypatch):
    monkeypatch.setenv("REFUSED", "1")
    with pytest.raises(RunError, match=r"sbatch refused .*invalid partition"):
        Slurm(1).start(machine)
    for wrong in ("gpu", "--x\nrm"):
        with pytest.raises(ConfigError, match="expected one option of sbatch"):
            Slurm(1, [wrong]).shown(machine)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RunError, match="sbatch: not found on this machine"):
        Slurm(1).start(machine)


def test_hosts_each_run_a_node_and_their_lines_say_whose_they_are(machine, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("THEN", "echo done; exit 1")
    assert Hosts([Host("node0"), Host("me@node1", 2)]).start(machine) == 1
    assert sorted(capsys.readouterr().out.splitlines()) == ["me@node1: done", "node0: done"]
    words = [str(machine.where), "a b", *machine.words[1:]]
    assert sorted(seen(tmp_path), key=len) == [words, [*words, "--slots", "2"]]
    assert "BatchMode=yes" in (tmp_path / "seen.options").read_text()


def test_a_host_that_is_lost_is_a_warning_where_another_came_to_the_end(machine, capsys):
    assert Hosts([Host("away"), Host("node0")]).start(machine) == 0
    shown = capsys.readouterr()
    assert "away: ssh: connect to host away: No route to host" in shown.out
    assert "warning: away ended with 255" in shown.err
    assert Hosts([Host("away")]).start(machine) == 255


def test_a_dry_run_shows_what_ssh_would_do(machine):
    (line,) = Hosts([Host("node0")]).shown(machine).splitlines()
    assert line.startswith("ssh -o BatchMode=yes")
    assert "guard.py" in line


def test_nodes_end_with_the_process_that_started_them(tmp_path, machine):
    """Through the real guard: what stands for Python is Python."""
    write = f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))"
    script = f"import os, pathlib, time; {write}; time.sleep(60)"
    command = NodeCommand([sys.executable, "-c", script], tmp_path, "toy", tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        try:
            Hosts([Host("node0")]).start(command)
        finally:
            os._exit(0)
    deadline = time.monotonic() + 20
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    node = Path("/proc", (tmp_path / "pid").read_text())
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while node.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not node.exists()


def test_hostfiles(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# ours\nnode0 slots=8\n\nme@node1  # the slow one\n")
    assert read_hostfile(path) == [Host("node0", 8), Host("me@node1")]
    path.write_text("-oProxyCommand=x\nnode0 slots=0\nnode1\nnode1\nnode2 gpus=3\n")
    with pytest.raises(ConfigError) as error:
        read_hostfile(path)
    for number in (1, 2, 5):
        assert f"line {number}: expected `name`" in str(error.value)
    assert "line 4: node1 stands there twice" in str(error.value)
    path.write_text("# none\n")
    with pytest.raises(ConfigError, match="names no host"):
        read_hostfile(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_hostfile(tmp_path / "none")


def test_nodes_have_the_same_code_first(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"/there{os.pathsep}/code")
    monkeypatch.setenv("DEEPMLF_CACHE", "/cache")
    found = passed_on(Path("/code"))
    assert found["PYTHONPATH"] == f"/code{os.pathsep}/there"
    assert found["DEEPMLF_CACHE"] == "/cache"
    assert json.loads(json.dumps(found)) == found
