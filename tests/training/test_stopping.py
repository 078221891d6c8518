"""Who listens for signals leaves all as it was, whenever one comes; launchers are in tests/recipes/test_stopping.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from deepmlf_llm.training.launch import Launch
from deepmlf_llm.training.stopping import RunStopped, StopRequest

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def state() -> tuple[Any, ...]:
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    return [signal.getsignal(number) for number in NUMBERS], wakeup, [thread.name for thread in threading.enumerate()]


def ask(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def test_inside_the_first_signal_ends_and_a_graceful_one_waits() -> None:
    before = state()
    with pytest.raises(RunStopped) as stopped, StopRequest(Launch("python")):
        ask(signal.SIGINT)
    assert stopped.value.code == 130
    assert state() == before
    steps = []

    def train() -> None:
        with StopRequest(Launch("python")) as stop, stop.graceful():
            ask()
            steps.append(stop.asked)

    with pytest.raises(RunStopped):
        train()
    assert steps == [True]
    assert state() == before


@pytest.mark.parametrize("moment", ["begins to listen", "ceases to listen"])
def test_one_that_comes_between_is_answered_when_all_is_put_back(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    before, handle, sent = state(), signal.signal, []

    def with_signal(number: int, handler: Any) -> Any:
        """SIGTERM when its handler was just set, or is about to go."""
        if moment.startswith("ceases") and not sent and handler is signal.SIG_DFL:
            sent.append(number)
            ask()
        result = handle(number, handler)
        if moment.startswith("begins") and not sent:
            sent.append(number)
            ask()
        return result

    entered = []
    with monkeypatch.context() as patch:
        patch.setattr(signal, "signal", with_signal)
        with pytest.raises(RunStopped), StopRequest(Launch("python")):
            entered.append(True)
    assert sent == [signal.SIGTERM]
    assert entered == ([True] if moment.startswith("ceases") else [])
    assert state() == before


def test_an_error_while_it_begins_puts_handlers_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = state()

    def no_pipe() -> tuple[int, int]:
        raise OSError("too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pipe", no_pipe)
        with pytest.raises(OSError, match="too many"), StopRequest(Launch("python")):
            raise AssertionError("it listens")
    assert state() == before


ENDS_PYTEST = """
import os, signal
from deepmlf_llm.training.launch import Launch
from deepmlf_llm.training.stopping import StopRequest

def test_first():
    with StopRequest(Launch("python")):
        os.kill(os.getpid(), signal.SIGTERM)

def test_second():
    pass
"""


def test_a_signal_to_pytest_ends_its_session(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "test_it.py").write_text(ENDS_PYTEST)
    words = ["-q", "-p", "no:cacheprovider", "-p", "tests.conftest", str(tmp_path / "test_it.py")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words], cwd=repository, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == pytest.ExitCode.INTERRUPTED, done.stdout
    assert "1 failed in" in done.stdout
