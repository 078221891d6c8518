"""Mirrors ``deepmlf_llm/study/guard.py``: real processes, really killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepmlf_llm.study import guard

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and prctl")

# A command with a child, and a child in a session of its own, as launchers make them; each writes its pid and waits.
TREE = """
import os, pathlib, subprocess, sys, time
folder, depth = pathlib.Path(sys.argv[1]), int(sys.argv[2])
{handler}
if depth:
    for apart in (False, True):
        subprocess.Popen([sys.executable, __file__, folder, str(depth - 1)], start_new_session=apart)
(folder / f"pid-{{os.getpid()}}").touch()
time.sleep(60)
"""
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"


def start(tmp_path: Path, handler: str = "", count: int = 7) -> tuple[subprocess.Popen, set[int]]:
    """A guarded tree of seven processes, all of them at work."""
    script = tmp_path / "tree.py"
    script.write_text(TREE.format(handler=handler))
    pids = tmp_path / "pids"
    pids.mkdir()
    process = guarded([sys.executable, str(script), str(pids), "2"])
    deadline = time.monotonic() + 60
    while len(list(pids.iterdir())) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    return process, {int(path.name.removeprefix("pid-")) for path in pids.iterdir()}


def guarded(command: list[str]) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, guard.__file__, *command], stdin=subprocess.PIPE)


def alive(pids: set[int]) -> set[int]:
    def state(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return "gone"

    return {pid for pid in pids if state(pid) not in ("gone", "Z", "X")}


def wait_for_none(pids: set[int], seconds: float = 10) -> set[int]:
    deadline = time.monotonic() + seconds
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    return alive(pids)


@pytest.mark.parametrize("code", [0, 3])
def test_passes_the_exit_code_on(code):
    process = guarded([sys.executable, "-c", f"raise SystemExit({code})"])
    assert process.wait(30) == code
    process.stdin.close()


def test_a_command_that_a_signal_ended():
    process = guarded([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    assert process.wait(30) == 128 + 9
    process.stdin.close()


def test_all_descendants_end_when_the_study_is_gone(tmp_path):
    process, pids = start(tmp_path)
    assert len(pids) == 7
    process.stdin.close()  # what the kernel does to the study's end of the pipe
    process.wait(30)
    assert not alive(pids)


def test_all_descendants_end_when_asked(tmp_path):
    process, pids = start(tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert not alive(pids)
    process.stdin.close()


def test_who_does_not_listen_is_killed(tmp_path):
    process, pids = start(tmp_path, DEAF)
    began = time.monotonic()
    process.stdin.close()
    assert process.wait(guard.GRACE + 20) == 128 + signal.SIGKILL
    assert time.monotonic() - began >= guard.GRACE
    assert not alive(pids)


def test_what_a_finished_command_leaves_behind_ends_too(tmp_path):
    script = "import subprocess, sys; p = subprocess.Popen(['sleep', '60'], start_new_session=True); print(p.pid)"
    process = subprocess.Popen(
        [sys.executable, guard.__file__, sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    pid = int(process.stdout.readline())
    assert process.wait(30) == 0
    assert not alive({pid})
    process.stdin.close()
    process.stdout.close()


def test_the_command_dies_with_its_guard():
    command = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"]
    process = subprocess.Popen(
        [sys.executable, guard.__file__, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    assert not wait_for_none({pid})
    process.stdin.close()
    process.stdout.close()


def test_descendants_are_found_through_every_generation(tmp_path):
    process, pids = start(tmp_path)
    assert pids <= set(guard.descendants(os.getpid()))
    process.stdin.close()
    process.wait(30)


def test_nothing_starts_before_the_first_pulse_and_all_ends_when_they_stop(tmp_path):
    """The study that hangs may be taken for dead: what it started must be over by then."""
    script = f"import pathlib, time; pathlib.Path({str(tmp_path / 'begun')!r}).touch(); time.sleep(60)"
    process = guarded([guard.WITHIN, "1.0", sys.executable, "-c", script])
    time.sleep(0.3)
    assert not (tmp_path / "begun").exists()
    for _ in range(6):  # longer than a second in all
        process.stdin.write(b".")
        process.stdin.flush()
        time.sleep(0.25)
    assert (tmp_path / "begun").exists()
    assert process.poll() is None
    assert process.wait(10) == guard.LAPSED
    process.stdin.close()


def test_without_any_pulse_nothing_is_started(tmp_path):
    process = guarded([guard.WITHIN, "0.2", "touch", str(tmp_path / "begun")])
    assert process.wait(10) == guard.LAPSED
    process.stdin.close()
    process = guarded([guard.WITHIN, "30", "touch", str(tmp_path / "begun")])
    process.stdin.close()  # the study is gone before it said go
    assert process.wait(10) == guard.LAPSED
    assert not (tmp_path / "begun").exists()


def test_with_pulses_the_exit_code_is_the_commands():
    process = guarded([guard.WITHIN, "30", sys.executable, "-c", "raise SystemExit(3)"])
    process.stdin.write(b".")
    process.stdin.flush()
    assert process.wait(30) == 3
    process.stdin.close()
