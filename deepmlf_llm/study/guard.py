"""Stands between a study and one cell, and sees to it that no process of the cell outlives the study.

    python guard.py COMMAND...        with a pipe on stdin that only the study holds open

It starts the command and waits. When the study goes, in whatever way (its end of the pipe closes), or asks (SIGTERM),
the command and everything that it started are told to end, and killed if they do not. Everything stays in the study's
own process group, so a SIGKILL to that group takes all at once; a SIGKILL to the guard alone takes the command with it.
Runs as a script, on the standard library alone: it must start in milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

GRACE = 5.0
"""Seconds between asking a process to end and killing it."""
LAPSED = 79
"""Exit code where the study sent no pulse in time."""
WITHIN = "--within"

_LINUX = sys.platform.startswith("linux")
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main(command: list[str], within: float | None = None) -> int:
    """Runs ``command``; returns its exit code, 128 + n where signal n ended it.

    Args:
        command: with its arguments.
        within: seconds; the study sends a byte at least as often, and the first one before anything is started. Where
            it does not (it hangs, is stopped, or has lost its claim), the command ends and the code is ``LAPSED``.
    """
    stopping = lapsed = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    for ignored in (signal.SIGINT, signal.SIGHUP):  # of a terminal, meant for the study, which then asks
        signal.signal(ignored, signal.SIG_IGN)
    if _LINUX:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # orphans of the command become ours, so they can be found
    guard = os.getpid()
    if within is not None and not _hears(within):
        return LAPSED
    heard = time.monotonic()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=lambda: _in_child(guard))
    status: int | None = None
    while status is None and not stopping:
        readable, _, _ = select.select([0], [], [], 0.1)
        if readable:
            stopping = stopping or not os.read(0, 4096)
            heard = time.monotonic()
        lapsed = within is not None and time.monotonic() - heard > within
        stopping = stopping or lapsed
        status = _reap(child.pid)
    left = _end(descendants(guard), child.pid)
    if lapsed and status is None:
        return LAPSED
    status = status if status is not None else left
    return os.waitstatus_to_exitcode(status) if status is not None and os.WIFEXITED(status) else 128 + _signal(status)


def _hears(within: float) -> bool:
    readable, _, _ = select.select([0], [], [], within)
    return bool(readable and os.read(0, 1))


def _in_child(guard: int) -> None:
    """Between fork and exec: the signals of a fresh process, and death with the guard."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    if _LINUX:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:  # it died before the line above
            os._exit(128 + signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _signal(status: int | None) -> int:
    return signal.SIGKILL if status is None else os.WTERMSIG(status)


def _reap(child: int) -> int | None:
    """Collects every process that has ended; the status of ``child`` if it is among them."""
    status = None
    while True:
        try:
            pid, found = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == 0:
            return status
        if pid == child:
            status = found


def _end(pids: list[int], child: int) -> int | None:
    """Asks, waits, kills; the status of ``child`` if it ended here."""
    status = None
    _send(pids, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while pids:
        if time.monotonic() > deadline:
            _send(pids, signal.SIGKILL)
        time.sleep(0.02)
        found = _reap(child)
        status = status if found is None else found
        pids = descendants(os.getpid())
    return status


def _send(pids: list[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def descendants(root: int) -> list[int]:
    """Processes below ``root`` that still run, children before their own children."""
    children: dict[int, list[int]] = {}
    for pid, parent, state in _processes():
        if state != "Z":
            children.setdefault(parent, []).append(pid)
    found, queue = [], [root]
    while queue:
        below = children.get(queue.pop(0), [])
        found += below
        queue += below
    return found


def _processes() -> list[tuple[int, int, str]]:
    """(pid, parent, state) of every process that can be seen."""
    rows = []
    if not Path("/proc/self/stat").exists():
        done = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True)
        fields = (line.split() for line in done.stdout.splitlines())
        return [(int(pid), int(parent), state[0]) for pid, parent, state, *_ in fields if int(parent) and state]
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                text = Path("/proc", entry, "stat").read_text()
            except OSError:  # it has just ended
                continue
            state, parent = text.rpartition(")")[2].split()[:2]
            rows.append((int(entry), int(parent), state))
    return rows


if __name__ == "__main__":
    given = sys.argv[1:]
    sys.exit(main(given[2:], float(given[1])) if given[:1] == [WITHIN] else main(given))
