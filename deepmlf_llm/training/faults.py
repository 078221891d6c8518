"""``--simulate_fault``: a run that is killed, hangs, or finds its disk full at a known point, to try one's own cluster.

    kill:rank1:step12         SIGKILL to process 1 as it begins step 12
    hang:rank1:step12         it stands still there
    nan:rank0:step12          a part of the loss of its first utterance is not finite
    full_disk:step12          no room as the checkpoint of step 12 is written
    kill:write7               SIGKILL before the 7th time that a file is synced or renamed after training began
    full_disk:write7          no room at that moment
    lost_rename:write7        SIGKILL there, and the rename, or the last one before it, had not reached the disk

``rank0`` is meant where no process is named; several faults have commas between them.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback

from deepmlf_llm.errors import ConfigError

_FORM = re.compile(r"(\w+)(?::rank(\d{1,6}))?:(step|write)(\d{1,9})")
_KINDS = {
    "step": ("kill", "hang", "nan", "full_disk"),
    "write": ("kill", "full_disk", "lost_rename"),
}


@dataclass(frozen=True)
class Fault:
    """One of them.

    Args:
        kind: kill, hang, nan, full_disk or lost_rename.
        rank: of the process.
        moment: step or write.
        number: of the step or write, from 1.
    """

    kind: str
    rank: int
    moment: str
    number: int

    def __str__(self) -> str:
        return f"{self.kind}:rank{self.rank}:{self.moment}{self.number}"


def parse_faults(text: str | None) -> list[Fault]:
    """Faults from ``kill:rank1:step12,nan:step3``; none from None.

    Raises:
        ConfigError: no such fault.
    """
    faults = []
    for part in [] if text is None else text.split(","):
        match = _FORM.fullmatch(part.strip())
        if match is None or match[1] not in _KINDS[match[3]] or int(match[4]) < 1:
            raise ConfigError(
                f"--simulate_fault {text}: expected KIND[:rankN]:stepN or KIND[:rankN]:writeN, with commas between "
                f"several; of a step: {', '.join(_KINDS['step'])}; of a write: {', '.join(_KINDS['write'])}"
            )
        faults.append(Fault(match[1], int(match[2] or 0), match[3], int(match[4])))
    return faults


class Faults(TrainerCallback):
    """Those of this process, each of which happens once.

    Args:
        faults: of all processes.
        rank: of this one.
    """

    def __init__(self, faults: list[Fault], rank: int) -> None:
        self.steps = [fault for fault in faults if fault.rank == rank and fault.moment == "step"]
        self.writes = {fault.number: fault for fault in faults if fault.rank == rank and fault.moment == "write"}
        self.poisoned = False
        self.full_disk_at: int | None = None
        self._written = 0
        self._undo: Callable[[], None] | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.poisoned = False
        for fault in self.steps:
            if fault.number != state.global_step + 1:
                continue
            if fault.kind == "nan":
                self.poisoned = True
            elif fault.kind == "full_disk":
                self.full_disk_at = fault.number
            else:
                tell(fault)
                if fault.kind == "kill":
                    die()
                while True:
                    time.sleep(60)

    def check_room(self, step: int) -> None:
        """As the checkpoint of a step is written.

        Raises:
            OSError: there is none left, by a fault.
        """
        if step == self.full_disk_at:
            self.full_disk_at = None
            raise no_room()

    @contextmanager
    def of_writes(self) -> Iterator[None]:
        """Inside, syncs and renames are counted, and one of them fails."""
        if not self.writes:
            yield
            return
        sync, rename = os.fsync, os.replace

        def synced(descriptor: Any) -> None:
            self._count()
            sync(descriptor)

        def renamed(source: Any, target: Any, **given: Any) -> None:
            kept = _content(target) if self._is_lost_next() else None
            self._count()
            rename(source, target, **given)
            self._undo = None if kept is None else lambda: _restore(target, kept)

        os.fsync, os.replace = synced, renamed  # type: ignore[assignment]
        try:
            yield
        finally:
            os.fsync, os.replace = sync, rename

    def _is_lost_next(self) -> bool:
        return any(fault.kind == "lost_rename" for fault in self.writes.values())

    def _count(self) -> None:
        self._written += 1
        fault = self.writes.get(self._written)
        if fault is None:
            return
        tell(fault)
        if fault.kind == "full_disk":
            raise no_room()
        if fault.kind == "lost_rename" and self._undo is not None:
            self._undo()
        die()


def tell(fault: Fault) -> None:
    """Says on stderr that what follows was asked for."""
    print(f"simulated fault: {fault}", file=sys.stderr, flush=True)


def die() -> None:
    """SIGKILL to this process, where there is none abruptly."""
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def no_room() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _content(path: Any) -> bytes | bool:
    """What is at a place: the bytes of a file, or whether anything is."""
    return open(path, "rb").read() if os.path.isfile(path) else os.path.exists(path)


def _restore(path: Any, kept: bytes | bool) -> None:
    if isinstance(kept, bytes):
        with open(path, "wb") as file:
            file.write(kept)
    elif kept is False and os.path.isfile(path):
        os.unlink(path)


def poison(outputs: Any) -> None:
    """Makes a part of a batch's loss, and what its first utterance is predicted, not finite: a simulated fault."""
    outputs.loss = outputs.loss * torch.nan
    part = next(iter(outputs.losses))
    outputs.losses = {**outputs.losses, part: outputs.losses[part].detach() * torch.nan}
    first = torch.zeros(len(outputs.polarity), dtype=torch.bool, device=outputs.polarity.device)
    first[0] = True
    outputs.polarity = torch.where(first.reshape(-1, *[1] * (outputs.polarity.dim() - 1)), torch.nan, outputs.polarity)
