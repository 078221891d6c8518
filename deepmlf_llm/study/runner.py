"""Runs the cells of a study, some at a time: what is finished is skipped, what was cut goes on, what fails is recorded.

Each cell is a process of its own behind a guard (see :mod:`~deepmlf_llm.study.guard`). Nothing but the files of the
cells says what has been done, so the study can be killed at any instant and started again.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepmlf_llm.errors import RunError
from deepmlf_llm.study.cell_process import CellProcess, Slot
from deepmlf_llm.study.cells import Plan, PlannedCell
from deepmlf_llm.study.code_version import CodeWatch
from deepmlf_llm.study.directory import StudyDirectory
from deepmlf_llm.study.live import Progress, View
from deepmlf_llm.study.results import (
    RUN,
    failed_record,
    finished_record,
    read_all,
    read_record,
    write_parquet,
    write_record,
)
from deepmlf_llm.training.checkpoints import drop_checkpoints

POLL = 0.2  # seconds


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
        directory: its folder, claimed by this process.
        slots: where cells run.
        recipe: the training recipe.
        view: shows how it goes.
        code: gives the version of the training code; default: of the files as they are now.
    """

    def __init__(
        self,
        plan: Plan,
        directory: StudyDirectory,
        slots: Sequence[Slot],
        recipe: Path,
        view: View,
        code: Callable[[], str] | None = None,
    ) -> None:
        self.plan, self.directory, self.recipe, self.view = plan, directory, recipe, view
        self.code = code or CodeWatch(recipe)
        self.free = list(slots)
        self.running: list[CellProcess] = []
        self.texts_read: set[str] = set()
        self.signal: int | None = None

    def run(self) -> list[dict[str, Any]]:
        """Runs what is not finished.

        Returns:
            Records of all cells of the plan that have ended, now or before, in the grid's order.

        Raises:
            Stopped: a signal came.
            RunError: the code changed while the study ran.
        """
        waiting = [cell for cell in self.plan.cells if not self.is_finished(cell)]
        waiting.sort(key=lambda cell: -cell.work)  # the longest first: no slot waits for a late long one
        progress = Progress(self.plan.cells, waiting)
        with _signals(self), self.view:
            try:
                while waiting or self.running:
                    if self.signal is not None:
                        raise Stopped(self.signal)
                    self._start(waiting, progress)
                    self._collect(progress)
                    self.view.show(progress)
                    time.sleep(POLL)
            finally:
                self._end_all()
        return read_all(self.directory, self.plan.cells)

    def is_finished(self, cell: PlannedCell) -> bool:
        """A failed cell is tried again: what made it fail may be gone."""
        record = read_record(self.directory.cell(cell.name), cell.fingerprint)
        return record is not None and record["status"] == "finished"

    def _start(self, waiting: list[PlannedCell], progress: Progress) -> None:
        while self.free:
            cell = next((cell for cell in waiting if self._may_start(cell)), None)
            if cell is None:
                return
            if self.code() != self.plan.code:
                raise RunError(
                    "the training code changed while the study ran; the same command starts it with the new code"
                )
            waiting.remove(cell)
            slot = self.free.pop(0)
            process = CellProcess(cell, self.directory.cell(cell.name), slot, self.recipe)
            self.running.append(process)
            progress.started(cell)
            self.view.started(cell, process.attempts, progress)

    def _may_start(self, cell: PlannedCell) -> bool:
        """Each text is read once: cells that read the same wait for the first of them to have read."""
        if cell.settings.get("text_cache") != "disk" or cell.text_key in self.texts_read:
            return True
        return all(process.cell.text_key != cell.text_key for process in self.running)

    def _collect(self, progress: Progress) -> None:
        for process in list(self.running):
            progress.reached(process.cell, process.step())
            if process.has_read_its_texts():
                self.texts_read.add(process.cell.text_key)
            exit_code = process.poll()
            if exit_code is not None and self.signal is None:
                self.running.remove(process)
                self.free.append(process.slot)
                self.free.sort(key=lambda slot: slot.number)
                self._conclude(process, exit_code, progress)

    def _conclude(self, process: CellProcess, exit_code: int, progress: Progress) -> None:
        cell, folder = process.cell, process.folder
        if exit_code == 0 and (folder / RUN / "result.json").is_file():
            record = finished_record(cell, folder, self.plan.code, process.attempts)
        else:
            record = failed_record(cell, folder, self.plan.code, process.attempts, exit_code)
        write_record(folder, record)
        if record["status"] == "finished":
            drop_checkpoints(folder / RUN)
        write_parquet(self.directory, read_all(self.directory, self.plan.cells))
        progress.ended(cell, record["status"])
        self.view.ended(cell, record, progress)

    def _end_all(self) -> None:
        for process in self.running:
            process.ask_to_end()
        for process in self.running:
            process.wait()
        self.running.clear()


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
