"""A process that works on a study folder: who it is, its heartbeat, and whether another one still has one.

Machines' clocks differ, so none is compared: a node writes a number that grows, and is dead to another one that has not
seen the number change for the length of its lease, by the watcher's own monotonic clock. On one machine a process that
is gone is seen at once.
"""

from __future__ import annotations

import json
import os
import platform
import re
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from deepmlf_llm.errors import FileError
from deepmlf_llm.files import make_directory, write_aside, writing
from deepmlf_llm.reading import read_json

NODES = "nodes"
REPORT = "report"  # in there: the turn to write what is of the study as a whole
LEASE = 90.0
"""Seconds without a change of the heartbeat after which a node counts as dead; a shared file system may show a change
up to a minute late."""
SHORTEST_LEASE = 20.0  # of the commands: half of it, and the guard's grace, must pass before another node takes over
_BEATS = 6  # a lease


class Node:
    """This process. As a context manager it keeps its heartbeat until the end.

    Args:
        folder: of the study.
        lease: seconds; stated in the heartbeat, so nodes may differ in it.
        clock: monotonic seconds; for tests.
    """

    def __init__(self, folder: Path, lease: float = LEASE, clock: Callable[[], float] = time.monotonic) -> None:
        host = re.sub(r"[^A-Za-z0-9.-]+", "-", platform.node()) or "node"
        self.name = f"{host}-{os.getpid()}-{secrets.token_hex(3)}"
        self.folder, self.lease, self._clock = folder, lease, clock
        self.pulses: list[Callable[[], None]] = []
        """Called after each beat that was written: what must end when beats fail listens here."""
        self._count = 0
        self._seen: dict[str, tuple[Any, float]] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def within(self) -> float:
        """Seconds without a pulse after which work must end: before anybody else could take it over."""
        return self.lease / 2

    def __enter__(self) -> Node:
        make_directory(self.folder / NODES)
        self._stop.clear()
        try:
            self.beat()
        except BaseException:
            with suppress(OSError):  # others are there
                (self.folder / NODES).rmdir()
            raise
        self._thread = threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with suppress(OSError):
            self._path(self.name).unlink(missing_ok=True)

    def beat(self) -> None:
        """Writes the heartbeat, then tells those that listen. Where ``nodes/`` was removed it is made again.

        Raises:
            FileError: it cannot be written.
        """
        self._count += 1
        content = {"node": self.name, "beat": self._count, "lease": self.lease, "process": process_mark(os.getpid())}
        path = self._path(self.name)
        with writing(path):  # not its parents: a study that was removed does not come back
            path.parent.mkdir(exist_ok=True)
        write_aside(path, json.dumps(content) + "\n")
        for pulse in list(self.pulses):
            pulse()

    def _keep_beating(self) -> None:
        while not self._stop.wait(self.lease / _BEATS):
            with suppress(FileError):  # the file system may come back; if it stays away the guards end the cells
                self.beat()

    def _path(self, name: str) -> Path:
        return self.folder / NODES / f"{name}.json"

    def is_dead(self, name: str) -> bool:
        """Whether the node called ``name`` holds nothing any more. To be asked again and again: time counts from the
        first question, and from each change that is seen."""
        if name == self.name:
            return False
        content: Any = None
        with suppress(OSError, ValueError):
            content = read_json(self._path(name))
        content = content if isinstance(content, dict) else {}
        if is_gone(content.get("process")):
            return True
        lease = content.get("lease")
        length = float(lease) if isinstance(lease, (int, float)) and lease > 0 else self.lease
        return self.unchanged(f"node {name}", content.get("beat")) > length

    def at_work(self, say: Callable[[str], None] | None = None, wait: float = 0.5) -> str | None:
        """Another node that works in the folder; returns when it is known whether there is one.

        On this machine that is at once, of another one after its next beat or its lease. Heartbeats of the dead are
        removed, so that the next start need not wait for them; one that only seemed dead writes its own again.

        Args:
            say: gets one line before time is spent on looking.
            wait: seconds between looks.

        Returns:
            Its name; None where there is none.
        """
        first: dict[str, Any] = {}
        while True:
            dead: list[str] = []
            unknown: list[str] = []
            for name, content in self._others():
                beat = content.get("beat")
                if is_alive(content.get("process")) or first.setdefault(name, beat) != beat:
                    return name
                (dead if self.is_dead(name) else unknown).append(name)
            if not unknown:
                for name in dead:
                    self._bury(name)
                return None
            if say is not None:
                say(f"looking whether node {unknown[0]} is still at work: for its lease, unless it is seen before")
                say = None
            time.sleep(wait)

    def _others(self) -> list[tuple[str, dict[str, Any]]]:
        """Names and heartbeats that lie in the folder, this one's left out."""
        found = []
        for path in sorted((self.folder / NODES).glob("*.json")):
            content: Any = None
            with suppress(OSError, ValueError):  # it has just ended, or is none
                content = read_json(path)
            if isinstance(content, dict) and content.get("node") == path.stem != self.name:
                found.append((path.stem, content))
        return found

    def _bury(self, name: str) -> None:
        with suppress(OSError):
            self._path(name).unlink(missing_ok=True)
        if (seen := self._seen.get(f"node {name}")) is not None:
            self._seen[f"node {name}"] = (None, seen[1])  # what it held need not be waited for a second time

    def unchanged(self, what: str, value: Any) -> float:
        """Seconds for which ``value`` has been seen under ``what``, by this process' own clock."""
        now = self._clock()
        if what not in self._seen or self._seen[what][0] != value:
            self._seen[what] = (value, now)
        return now - self._seen[what][1]


def process_mark(pid: int) -> list[Any] | None:
    """What tells a process from all others that ever ran on this machine; None where it cannot be told."""
    place, started = _place(), _started(pid)
    return None if place is None or started is None else [place, pid, started]


def is_gone(mark: Any) -> bool:
    """Whether the marked process ran on this machine and has ended; False where that cannot be known."""
    if not isinstance(mark, list) or len(mark) != 3 or mark[0] is None or mark[0] != _place():
        return False
    _, pid, started = mark
    if not isinstance(pid, int) or pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        return False
    found = _started(pid)
    return found is not None and found != started


def is_alive(mark: Any) -> bool:
    """Whether the marked process runs on this machine; False where that cannot be known."""
    return isinstance(mark, list) and len(mark) == 3 and mark[0] == _place() is not None and not is_gone(mark)


def _place() -> str | None:
    """This boot of this machine, and the space of process numbers (containers have their own)."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return None


def _started(pid: int) -> int | None:
    """Clock ticks from the boot to its start; -1 for one that has ended and is only listed."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return -1 if fields[0] in "ZX" else int(fields[19])
