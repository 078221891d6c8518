"""Runs the cells of a study, some at a time: what is finished is skipped, what was cut goes on, what fails is recorded.

Each cell is a process of its own behind a guard (see :mod:`~deepmlf_llm.study.guard`). Nothing but the files of the
cells says what has been done, so the study can be killed at any instant and started again. Several nodes may work in
one folder: a cell belongs to the node that holds its claim (see :mod:`~deepmlf_llm.study.claims`).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from deepmlf_llm.errors import FileError, RunError
from deepmlf_llm.study import guard
from deepmlf_llm.study.cell_process import CellProcess, Slot
from deepmlf_llm.study.cells import Plan, PlannedCell
from deepmlf_llm.study.claims import take
from deepmlf_llm.study.code_version import CodeWatch
from deepmlf_llm.study.directory import StudyDirectory
from deepmlf_llm.study.gpu_memory import GpuMemory
from deepmlf_llm.study.live import Progress, View
from deepmlf_llm.study.node import Node
from deepmlf_llm.study.results import (
    RUN,
    failed_record,
    finished_record,
    is_finished,
    read_all,
    read_record,
    write_parquet,
    write_record,
)
from deepmlf_llm.training.checkpoints import drop_checkpoints

POLL = 0.2  # seconds
_LOOKS = 20  # a lease, at what other nodes hold


class Stopped(Exception):
    """A signal asked the study to end; no process of it is left.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Runner:
    """One start of a study.

    Args:
        plan: its cells.
        directory: its folder.
        slots: where cells run.
        recipe: the training recipe.
        view: shows how it goes.
        code: gives the version of the training code; default: of the files as they are now.
        node: this process with its heartbeat, begun; default: one for this run alone.
        memory: of GPUs, where it is known: a cell then starts where it fits.
    """

    def __init__(
        self,
        plan: Plan,
        directory: StudyDirectory,
        slots: Sequence[Slot],
        recipe: Path,
        view: View,
        code: Callable[[], str] | None = None,
        node: Node | None = None,
        memory: GpuMemory | None = None,
    ) -> None:
        self.plan, self.directory, self.recipe, self.view = plan, directory, recipe, view
        self.code = code or CodeWatch(recipe)
        self.node, self.memory = node, memory or GpuMemory()
        self.free = list(slots)
        self.running: list[CellProcess] = []
        self.texts_read: set[str] = set()
        self.signal: int | None = None
        self._looked: dict[str, float] = {}  # cell -> when another node was seen to hold it
        self._failed_before: dict[str, int] = {}  # cell that had failed when this start began -> attempts

    def run(self) -> list[dict[str, Any]]:
        """Runs what is not finished; where other nodes run some of it, waits for them or takes over from them.

        Returns:
            Records of all cells of the plan that have ended, now or before, in the grid's order.

        Raises:
            Stopped: a signal came.
            RunError: the code changed while the study ran.
        """
        if self.node is not None:
            return self._run(self.node)
        with Node(self.directory.path) as node:
            return self._run(node)

    def _run(self, node: Node) -> list[dict[str, Any]]:
        records = {cell.name: self._record(cell) for cell in self.plan.cells}
        waiting = [cell for cell in self.plan.cells if not is_finished(records[cell.name])]
        waiting.sort(key=_longest_first)
        self._failed_before = {name: r["run_info"]["attempts"] for name, r in records.items() if r is not None}
        progress = Progress(self.plan.cells, waiting)
        looked = time.monotonic()
        with _signals(self), self.view:
            try:
                while waiting or self.running:
                    if self.signal is not None:
                        raise Stopped(self.signal)
                    if time.monotonic() - looked > node.lease / _LOOKS:
                        self._drop_ended(waiting, progress)
                        looked = time.monotonic()
                    self._start(node, waiting, progress)
                    self._collect(node, waiting, progress)
                    self.view.show(progress)
                    time.sleep(POLL)
            finally:
                self._end_all()
        return read_all(self.directory, self.plan.cells)

    def _record(self, cell: PlannedCell) -> dict[str, Any] | None:
        return read_record(self.directory.cell(cell.name), cell.fingerprint)

    def _drop_ended(self, waiting: list[PlannedCell], progress: Progress) -> None:
        """Takes out what another node has ended. What failed there since this start began is not tried again here."""
        for cell in list(waiting):
            record = self._record(cell)
            if record is None:
                continue
            tried = record["run_info"]["attempts"] != self._failed_before.get(cell.name)
            if record["status"] == "finished" or tried:
                waiting.remove(cell)
                progress.noted(cell, record["status"])

    def _start(self, node: Node, waiting: list[PlannedCell], progress: Progress) -> None:
        for cell in list(waiting):
            if not self.free:
                return
            held = time.monotonic() - self._looked.get(cell.name, -node.lease) < node.lease / _LOOKS
            slot = self.memory.slot_for(cell, self.free, [(p.cell, p.slot) for p in self.running])
            if slot is None or held or not self._may_start(cell):
                continue
            if self.code() != self.plan.code:
                raise RunError(
                    "the training code changed while the study ran; the same command starts it with the new code"
                )
            self._start_in(slot, cell, node, waiting, progress)

    def _start_in(
        self, slot: Slot, cell: PlannedCell, node: Node, waiting: list[PlannedCell], progress: Progress
    ) -> None:
        folder = self.directory.cell(cell.name)
        claim = take(node, folder)
        if claim is None:
            self._looked[cell.name] = time.monotonic()
            progress.noted(cell, "elsewhere")
            return
        self._drop_ended(left := [cell], progress)  # it may have ended just before it could be claimed
        waiting.remove(cell)
        if not left:
            claim.release()
            return
        self.free.remove(slot)
        process = CellProcess(cell, folder, slot, self.recipe, claim)
        self.running.append(process)
        progress.started(cell)
        self.view.started(cell, process.attempts, progress)

    def _may_start(self, cell: PlannedCell) -> bool:
        """Each text is read once: cells that read the same wait for the first of them to have read."""
        if cell.settings.get("text_cache") != "disk" or cell.text_key in self.texts_read:
            return True
        return all(process.cell.text_key != cell.text_key for process in self.running)

    def _collect(self, node: Node, waiting: list[PlannedCell], progress: Progress) -> None:
        for process in list(self.running):
            progress.reached(process.cell, process.step())
            if process.has_read_its_texts():
                self.texts_read.add(process.cell.text_key)
            exit_code = process.poll()
            if exit_code is not None and self.signal is None:
                self.running.remove(process)
                self.free.append(process.slot)
                self.free.sort(key=lambda slot: slot.number)
                process.close()
                held = process.claim.is_held()
                if exit_code == guard.LAPSED or not held:
                    waiting.append(process.cell)  # another node may have it by now
                    waiting.sort(key=_longest_first)
                    progress.noted(process.cell, "waiting")
                    if not held:
                        self.view.dropped(process.cell, progress)
                else:
                    self._conclude(node, process, exit_code, progress)
                process.claim.release()

    def _conclude(self, node: Node, process: CellProcess, exit_code: int, progress: Progress) -> None:
        cell, folder = process.cell, process.folder
        if exit_code == 0 and (folder / RUN / "result.json").is_file():
            record = finished_record(cell, folder, self.plan.code, process.attempts)
        else:
            record = failed_record(cell, folder, self.plan.code, process.attempts, exit_code)
        write_record(folder, record)
        if record["status"] == "finished":
            drop_checkpoints(folder / RUN)
        # All of the study, not of this start's part alone: it may be all that is kept.
        write_parquet(self.directory, read_all(self.directory, self.directory.planned()), node.name)
        progress.ended(cell, record["status"])
        self.view.ended(cell, record, progress)

    def _end_all(self) -> None:
        for process in self.running:
            process.ask_to_end()
        for process in self.running:
            process.wait()
            process.close()
            with suppress(FileError):  # on a full disk it stays; the end of this process frees it
                process.claim.release()
        self.running.clear()


def _longest_first(cell: PlannedCell) -> float:
    """No slot waits for a late long one."""
    return -cell.work


@contextmanager
def _signals(runner: Runner) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP set a mark that the loop looks at; the cells are ended there."""

    def note(number: int, frame: Any) -> None:
        runner.signal = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
