"""Locks that a fork leaves open: a child process has only the thread that forked, and nobody would ever release them.

They are copied and pickled as new, open ones, so that what holds one can be copied as before.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _Renewed:
    """Made again in a child process."""

    def __init__(self) -> None:
        self._renew()
        _ALL.add(self)

    def _renew(self) -> None:
        raise NotImplementedError

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


_ALL: weakref.WeakSet[_Renewed] = weakref.WeakSet()


def _renew_all() -> None:
    for lock in list(_ALL):
        lock._renew()


os.register_at_fork(after_in_child=_renew_all)


class Lock(_Renewed):
    """Held by one thread at a time, which may take it again: ``with lock:``."""

    def _renew(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()


class SharedLock(_Renewed):
    """Held by many threads at once, or by one alone. Whoever waits to hold it alone goes before new sharers."""

    def _renew(self) -> None:
        self._changed = threading.Condition()
        self._sharers = 0
        self._waiting = 0
        self._owner: int | None = None
        self._times = 0  # that the owner has taken it

    @property
    def is_mine(self) -> bool:
        """Whether this thread holds it alone."""
        return self._owner == threading.get_ident()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Beside other sharers; waits while a thread holds it alone. Must not be taken again inside."""
        changed = self._changed
        with changed:
            changed.wait_for(lambda: self._owner is None and not self._waiting)
            self._sharers += 1
        try:
            yield
        finally:
            with changed:
                if changed is self._changed:  # else this is a child process, where nobody shares it yet
                    self._sharers -= 1
                    changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Without any sharer; the thread that holds it may take it again."""
        changed = self._changed
        with changed:
            if not self.is_mine:
                self._waiting += 1
                try:
                    changed.wait_for(lambda: self._owner is None and not self._sharers)
                finally:
                    self._waiting -= 1
                self._owner = threading.get_ident()
            self._times += 1
        try:
            yield
        finally:
            with changed:
                if changed is self._changed:
                    self._times -= 1
                    if not self._times:
                        self._owner = None
                    changed.notify_all()
