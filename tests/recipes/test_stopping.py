"""Signals to a run as users start it: to the launcher alone, to all of its processes, twice."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from deepmlf_llm.training.checkpoints import all_checkpoints, flaw
from tests.processes import at_work

from .test_train_llama import DEADLINE, data, environment, launcher, recipe, small  # noqa: F401

WAIT = 90  # seconds for a step, a checkpoint and the end, on a busy machine


@contextmanager
def begun(command: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A run that makes steps. It would need hours, and ends with the test, whatever becomes of that."""
    running = subprocess.Popen(
        command, cwd=folder, env=environment(), start_new_session=True, stdout=-1, stderr=-2, text=True
    )
    try:
        log, end = folder / "run" / "metrics.jsonl", time.monotonic() + DEADLINE
        while not (log.is_file() and log.stat().st_size) and time.monotonic() < end:
            assert running.poll() is None, running.communicate()[0]
            time.sleep(0.1)
        assert log.stat().st_size
        yield running
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.communicate()


def everything_ended(folder: Path) -> bool:
    end = time.monotonic() + WAIT
    while at_work(folder) and time.monotonic() < end:
        time.sleep(0.1)
    return not at_work(folder)


def long_run(data: str, folder: Path, **changes: object) -> list[str]:  # noqa: F811
    """Its directory is named in full, so that its processes can be found."""
    quiet = {"max_steps": 100_000, "save_strategy": "no", "eval_strategy": "steps", "eval_steps": 50_000}
    return small(data, **{**quiet, "output_dir": str(folder / "run"), **changes})


CASES = {
    "python, SIGTERM": ("python", "", signal.SIGTERM, 143),
    "torchrun, SIGTERM": ("torchrun", "", signal.SIGTERM, 1),
    "deepspeed, SIGTERM": ("deepspeed", "zero2", signal.SIGTERM, -15),
    "deepspeed, SIGKILL": ("deepspeed", "zero2", signal.SIGKILL, -9),
    "deepspeed, SIGINT to all": ("deepspeed", "zero2", signal.SIGINT, None),
}


@pytest.mark.slow  # five launches; what SIGINT and SIGHUP leave is seen in one process, in training/test_resume.py
@pytest.mark.timeout(420)
@pytest.mark.parametrize("case", CASES)
def test_one_checkpoint_then_a_clean_end(
    recipe: str,  # noqa: F811
    data: str,  # noqa: F811
    tmp_path: Path,
    repository: Path,
    case: str,
) -> None:
    kind, engine, number, code = CASES[case]
    ds = ["--ds", str(repository / "ds_configs" / f"{engine}.json")] if engine else []
    with begun([*launcher(kind), recipe, *long_run(data, tmp_path), *ds], tmp_path) as running:
        if case.endswith("to all"):
            os.killpg(running.pid, number)
        else:
            running.send_signal(number)
        said = running.communicate(timeout=WAIT)[0]
    assert code is None or running.returncode == code
    assert everything_ended(tmp_path)
    assert "stopped at step" in said
    (checkpoint,) = all_checkpoints(tmp_path / "run")
    assert flaw(checkpoint) is None
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith((".checkpoint", ".adapter"))]


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    """Though the main thread waits in native code, as in a collective operation whose other end is gone."""
    script = tmp_path / "stuck.py"
    script.write_text(
        "import ctypes\n"
        "from deepmlf_llm.training.launch import Launch\n"
        "from deepmlf_llm.training.stopping import StopRequest\n"
        "wait = ctypes.CDLL(None).usleep\n"
        "with StopRequest(Launch('python')) as stop, stop.graceful():\n"
        "    print('ready', flush=True)\n"
        "    for _ in range(60):\n"
        "        wait(900_000)\n"
        "    print('heard' if stop.asked else 'deaf', flush=True)\n"
    )
    running = subprocess.Popen(
        [*launcher("python"), str(script)], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "ready\n"
    running.terminate()
    time.sleep(1.5)
    assert running.poll() is None
    running.terminate()
    assert running.wait(timeout=20) == 143
    assert running.stdout.read() == ""
