"""Signals that ask a run to end: a checkpoint first, then an orderly end, on all processes at the same step.

SIGTERM, SIGINT (Ctrl-C), SIGHUP and SIGUSR1 (``sbatch --signal``) count, unless the program was started with one of
them ignored (``nohup``).
Launchers and terminals pass one request on several times, so what comes within :data:`GRACE` of the first is the same
request; a later one ends the process at once. Outside of training, where there is nothing to save, the first one does.

The ``deepspeed`` command hands no signal on: when it alone is told to end, it goes, and its processes would train on.
So each process looks whether its launcher is still there, and takes its absence for SIGTERM.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from deepmlf_llm.training.launch import Launch

GRACE = 1.0  # seconds
_LOOK = 0.5  # seconds between two looks for the launcher
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name))


class RunStopped(SystemExit):
    """A run ended because it was asked to, by signal n: exit code 128 + n. The same command goes on with it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


class StopRequest:
    """Listens for requests to stop, as a context manager. Restores what was there before.

    Args:
        launch: how this process was started; decides whether there is a launcher to look for.
    """

    def __init__(self, launch: Launch) -> None:
        self.number: int | None = None
        self._pid = os.getpid()
        self._since = 0.0
        self._graceful = False
        self._before: dict[int, Any] = {}
        self._launcher_is_there = _launcher_watch(launch)
        self._wake: tuple[int, int] | None = None
        self._thread: threading.Thread | None = None

    @property
    def asked(self) -> bool:
        return self.number is not None

    @contextmanager
    def graceful(self) -> Iterator[None]:
        """Inside, a request is only noted: who trains looks at :attr:`asked` between two steps."""
        self._graceful = True
        try:
            yield
        finally:
            self._graceful = False
        if self.number is not None:  # after the last look
            raise RunStopped(self.number)

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread may handle signals
        try:
            with self.graceful():  # what comes meanwhile is answered when it can be put back
                self._listen()
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        answered = self.number
        self._restore()
        if self.number != answered:
            raise RunStopped(self.number or signal.SIGTERM)

    def _listen(self) -> None:
        for number in _SIGNALS:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                self._before[number] = signal.getsignal(number)
                signal.signal(number, self._handle)
        _ACTIVE.append(self)
        self._wake = os.pipe()
        for end in self._wake:
            os.set_blocking(end, False)
        before = signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        if before != -1:  # an event loop's
            signal.set_wakeup_fd(before)
        self._thread = threading.Thread(target=self._watch, name="stop request", daemon=True)
        self._thread.start()

    def _restore(self) -> None:
        """All as it was; also of a request that began to listen only in part."""
        self._graceful = True  # nothing is raised half-way
        for number, before in self._before.items():
            signal.signal(number, before)
        if self in _ACTIVE:
            _ACTIVE.remove(self)
        if self._wake is None:
            return
        current = signal.set_wakeup_fd(-1)
        if current != self._wake[1]:
            signal.set_wakeup_fd(current)
        os.close(self._wake[1])  # the thread reads the end of the pipe, and ends
        if self._thread is not None and self._thread.ident is not None:
            self._thread.join()
        os.close(self._wake[0])
        self._wake = self._thread = None

    def _handle(self, number: int, _frame: object) -> None:
        """In the main thread, between two instructions."""
        if self.number is None:
            self.number, self._since = number, time.monotonic()
            if not self._graceful:
                raise RunStopped(number)
        elif time.monotonic() - self._since > GRACE:
            end_at_once(number)

    def _watch(self) -> None:
        """In a thread of its own: sees a second signal although the main thread waits for another process."""
        assert self._wake is not None
        first: float | None = None
        while True:
            ready, _, _ = select.select([self._wake[0]], [], [], _LOOK)
            received = os.read(self._wake[0], 64) if ready else None
            if received == b"":
                return
            for number in received or b"":
                if number not in self._before:
                    continue
                if first is None:
                    first = time.monotonic()
                elif time.monotonic() - first > GRACE:
                    end_at_once(number)
            if self._launcher_is_there is not None and not self._launcher_is_there():
                self._launcher_is_there = None
                os.kill(self._pid, signal.SIGTERM)

    def _in_fork(self) -> None:
        """A forked child, a worker that loads data, lives on until its parent has no more use for it."""
        signal.set_wakeup_fd(-1)
        for number in self._before:
            signal.signal(number, _IgnoreOnce())


class _IgnoreOnce:
    def __call__(self, number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)


_ACTIVE: list[StopRequest] = []


def _after_fork() -> None:
    for request in _ACTIVE:
        request._in_fork()
    _ACTIVE.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def end_at_once(number: int) -> None:
    """Without another word; locks go with the process."""
    os._exit(128 + number)


def keep_talking() -> None:
    """Where whoever read our output is gone, what is printed goes nowhere, instead of ending the program."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (BrokenPipeError, OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _launcher_watch(launch: Launch) -> Callable[[], bool] | None:
    """What tells whether this process still has its launcher; None where there is none to lose."""
    if launch.launcher == "python" or not hasattr(os, "getppid"):
        return None
    parent = os.getppid()
    command = _command_above(parent) if launch.launcher == "deepspeed" else None

    def is_there() -> bool:
        if os.getppid() != parent:
            return False
        return command is None or _parent_of(parent) == command

    return is_there


def _command_above(launcher: int) -> int | None:
    """The ``deepspeed`` command, which starts the launcher of this machine's processes; None under another one."""
    import psutil

    try:
        above = psutil.Process(launcher).parent()
        words = [] if above is None else above.cmdline()[:3]
    except psutil.Error:
        return None
    known = ("deepspeed", "ds", "deepspeed.launcher.runner", "runner.py")
    return above.pid if above and any(os.path.basename(word) in known for word in words) else None


def _parent_of(pid: int) -> int | None:
    """Of a process that may have ended. One whose own parent is gone has another parent at once."""
    import psutil

    try:
        found: int = psutil.Process(pid).ppid()
    except psutil.Error:
        return None
    return found
