"""Whether the other processes of a run are alive: one that has died, or stands still, is named by the others.

Without it the others wait in a collective operation for as long as its timeout, or end with a message about a socket.
Each process has a thread that says every second that it lives and how far it has come. The first process watches all,
the others watch the first and hear from it. On the same machine a process that is gone is seen at once, on another one
after :data:`SILENCE`.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from deepmlf_llm.errors import DeepMLFError
from deepmlf_llm.training.launch import Launch, free_port, wait_for_everyone

BEAT = 1.0  # seconds
SILENCE = 20.0  # seconds without a sign after which a process of another machine is taken for dead
PATIENCE = 4.0  # seconds that the main thread has to end by itself, once a verdict is known
TRY_AGAIN = 75
"""Exit code of a process whose run another process has ended: EX_TEMPFAIL, the same command again goes on."""
_VERDICT = "verdict"


class ProcessLost(DeepMLFError):
    """Another process of the run has died or stands still; the same command goes on from the newest checkpoint."""

    exit_code = TRY_AGAIN


class PeerWatch:
    """Watches the processes of a run while it trains, as a context manager; does nothing for one process.

    Args:
        launch: of this process.
        stalled_after: seconds without progress of any process after which the one that is furthest behind is named.
    """

    def __init__(self, launch: Launch, stalled_after: float) -> None:
        self.launch, self.stalled_after = launch, stalled_after
        self.step = 0
        self._place = 0
        self._over = threading.Event()
        self._known = threading.Event()
        self._verdict = ""

    def progress(self, step: int) -> None:
        """Called by the main thread whenever it gets on."""
        self.step = step
        self._place += 1

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Every process enters this together.

        Raises:
            ProcessLost: in the place of what a collective operation says when another process is gone.
        """
        if self.launch.processes == 1:
            yield
            return
        store = self._join()
        self._over, self._known = threading.Event(), threading.Event()
        thread = threading.Thread(target=self._run, args=(store,), name="peer watch", daemon=True)
        thread.start()
        try:
            yield
        except Exception as error:
            if _is_of_a_collective(error) and self._known.wait(SILENCE + 3 * BEAT):
                raise ProcessLost(self._verdict) from error
            raise
        finally:
            self._over.set()
        thread.join()
        wait_for_everyone()  # until here the first process holds the store

    def _join(self) -> Any:
        """A store of this run, apart from torch's own, whose answers may wait for a collective operation."""
        import torch.distributed as dist

        first, host = self.launch.is_main, os.environ.get("MASTER_ADDR", "127.0.0.1")
        box = [free_port() if first else 0]
        wait = timedelta(seconds=60)
        store = dist.TCPStore(host, box[0], is_master=True, wait_for_workers=False, timeout=wait) if first else None
        dist.broadcast_object_list(box, src=0)
        if store is None:
            store = dist.TCPStore(host, box[0], is_master=False, wait_for_workers=False, timeout=wait)
        self._beat(store, 0)
        dist.barrier()
        return store

    def _beat(self, store: Any, count: int) -> None:
        store.set(f"process/{self.launch.rank}", json.dumps({**self._state(), "beat": count}))

    def _state(self) -> dict[str, Any]:
        mine = {"host": socket.gethostname(), "machine": _here(), "pid": os.getpid()}
        return {**mine, "place": self._place, "step": self.step}

    def _run(self, store: Any) -> None:
        watched = range(1, self.launch.processes) if self.launch.is_main else [0]
        seen: dict[int, tuple[int, float]] = {}
        count, advanced = 0, time.monotonic()
        places: dict[int, int] = {}
        last: dict[str, Any] = {}
        while not self._over.wait(BEAT):
            count += 1
            try:
                self._beat(store, count)
                if not self.launch.is_main and store.check([_VERDICT]):
                    return self._end(store.get(_VERDICT).decode())
                told = {rank: json.loads(store.get(f"process/{rank}")) for rank in watched}
            except Exception:  # the first process holds the store
                if not self._over.is_set():
                    self._end(self._words(0, last, "has died") if last else "process 0 has died")
                return None
            now = time.monotonic()
            last = told.get(0, last)
            for rank, process in told.items():
                beat, since = seen.get(rank, (-1, now))
                seen[rank] = (beat, since) if beat == process["beat"] else (process["beat"], now)
                if _is_gone(process) or now - seen[rank][1] > SILENCE:
                    return self._end(self._words(rank, process, "has died"), store)
            if self.launch.is_main:
                told[0] = self._state()
                now_at = {rank: process["place"] for rank, process in told.items()}
                advanced, places = (now, now_at) if now_at != places else (advanced, places)
                if now - advanced > self.stalled_after and len(set(now_at.values())) > 1:  # else all are as slow
                    behind = min(now_at, key=now_at.__getitem__)
                    return self._end(self._words(behind, told[behind], "stands still"), store)
        return None

    def _words(self, rank: int, process: dict[str, Any], what: str) -> str:
        """Its step is a second old: this process may know of a later one."""
        where = f"process {rank} ({process['host']}, pid {process['pid']})"
        return (
            f"{where} {what} after step {max(self.step, process['step'])}; this run ends, and the same command goes on "
            "from its newest checkpoint"
        )

    def _end(self, verdict: str, store: Any = None) -> None:
        """Tells the others, lets the main thread end by itself, and ends the process where it cannot."""
        if store is not None:
            with suppress(Exception):
                store.set(_VERDICT, verdict)
        self._verdict = verdict
        self._known.set()
        if not self._over.wait(PATIENCE):
            print(f"error: {verdict}", file=sys.stderr, flush=True)
            os._exit(TRY_AGAIN)


def _here() -> str:
    """This machine, and the part of it whose processes see one another: a container numbers its own."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _is_of_a_collective(error: Exception) -> bool:
    """Whether it speaks of other processes."""
    words = ("gloo", "nccl", "peer", "socket", "connection", "timed out", "timeout", "store")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def _is_gone(process: dict[str, Any]) -> bool:
    """Whether a process of this machine has ended; one of another machine is not known."""
    if process["machine"] != _here():
        return False
    import psutil

    try:
        return bool(psutil.Process(process["pid"]).status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return True
