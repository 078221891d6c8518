"""What one sees of a running study: a table that redraws itself on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol

from deepmlf_llm.study.cells import PlannedCell

_ROWS = 24  # cells shown at once
_DROPPED = "its folder was removed, or is another node's by now"


class Progress:
    """How far the cells are.

    Args:
        cells: all of the study.
        waiting: those that this start has to run.
        clock: seconds; for tests.
    """

    def __init__(
        self,
        cells: Sequence[PlannedCell],
        waiting: Sequence[PlannedCell],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cells = list(cells)
        unfinished = {cell.name for cell in waiting}
        self.status = {cell.name: "waiting" if cell.name in unfinished else "finished" for cell in cells}
        self.steps = dict.fromkeys(self.status, 0)
        self.began: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._start = clock()
        # Loading and evaluating cost something too, whatever the size of the model: as much as a mean cell's tenth.
        mean = sum(cell.work for cell in waiting) / max(len(waiting), 1)
        self._work = {cell.name: cell.work + 0.1 * mean + 1 for cell in waiting}

    def started(self, cell: PlannedCell) -> None:
        self.status[cell.name] = "running"
        self.began[cell.name] = self._clock()

    def reached(self, cell: PlannedCell, step: int) -> None:
        self.steps[cell.name] = step

    def ended(self, cell: PlannedCell, status: str) -> None:
        self.status[cell.name] = status
        self.seconds[cell.name] = self._clock() - self.began[cell.name]

    def noted(self, cell: PlannedCell, status: str) -> None:
        """What this process did not do itself: another node runs or has ended it, or it waits again."""
        self.status[cell.name] = status

    def count(self, *status: str) -> int:
        return sum(one in status for one in self.status.values())

    def share(self, cell: PlannedCell) -> float:
        """Of a cell's steps, done."""
        return min(1.0, self.steps[cell.name] / max(cell.steps, 1))

    def seconds_left(self) -> float | None:
        """Estimated from the work done since the start; None before there is any."""
        by_name = {cell.name: cell for cell in self.cells}
        done = 0.0
        for name, work in self._work.items():
            done += work * (1.0 if self.status[name] in ("finished", "failed") else self.share(by_name[name]))
        total = sum(self._work.values())
        if done <= 0:
            return None
        return (self._clock() - self._start) * (total - done) / done

    def line(self) -> str:
        """``7 of 24 cells, 1 failed, about 6 min left``."""
        parts = [f"{self.count('finished', 'failed')} of {len(self.cells)} cells"]
        if failed := self.count("failed"):
            parts.append(f"{failed} failed")
        if elsewhere := self.count("elsewhere"):
            parts.append(f"{elsewhere} with other nodes")
        left = self.seconds_left()
        if left is not None:
            parts.append(f"about {_duration(left)} left")
        return ", ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class View(Protocol):
    """Shows a study while it runs."""

    def __enter__(self) -> Any: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, progress: Progress) -> None:
        """Called several times a second."""

    def started(self, cell: PlannedCell, attempts: int, progress: Progress) -> None: ...

    def dropped(self, cell: PlannedCell, progress: Progress) -> None:
        """Its result is not taken: the cell was no longer this node's when it ended."""

    def ended(self, cell: PlannedCell, record: dict[str, Any], progress: Progress) -> None: ...


class PlainView:
    """A line when a cell starts or ends, and one every ``every`` seconds."""

    def __init__(self, metric: str, every: float = 30.0, write: Callable[[str], None] | None = None) -> None:
        self.metric, self.every = metric, every
        self._write = write or (lambda text: print(text, flush=True))
        self._last = time.monotonic()

    def __enter__(self) -> PlainView:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, progress: Progress) -> None:
        if time.monotonic() - self._last >= self.every:
            running = [cell for cell in progress.cells if progress.status[cell.name] == "running"]
            far = ", ".join(f"{cell.name} {progress.share(cell):.0%}" for cell in running)
            self._line(f"  {progress.line()}; running: {far or 'none'}")

    def started(self, cell: PlannedCell, attempts: int, progress: Progress) -> None:
        self._line(f"start     {cell.name}" + (f" (start {attempts})" if attempts > 1 else ""))

    def dropped(self, cell: PlannedCell, progress: Progress) -> None:
        self._line(f"dropped   {cell.name}: {_DROPPED}; {progress.line()}")

    def ended(self, cell: PlannedCell, record: dict[str, Any], progress: Progress) -> None:
        what = outcome(record, self.metric)
        self._line(
            f"{record['status']:<9} {cell.name}: {what} ({progress.seconds[cell.name]:.0f} s); {progress.line()}"
        )

    def _line(self, text: str) -> None:
        self._last = time.monotonic()
        self._write(text)


def outcome(record: dict[str, Any], metric: str) -> str:
    """A cell's result in a few words."""
    if record["status"] == "failed":
        return str(record["run_info"]["reason"])
    value = record["metrics"]["validation"].get(metric)
    return f"validation {metric} " + ("undefined" if value is None else f"{value:.4f}")


class TableView:
    """One table, redrawn in place (rich)."""

    def __init__(self, metric: str) -> None:
        from rich.live import Live

        self.metric = metric
        self.outcomes: dict[str, str] = {}
        self._live = Live(auto_refresh=False)

    def __enter__(self) -> TableView:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def show(self, progress: Progress) -> None:
        self._live.update(self.table(progress), refresh=True)

    def started(self, cell: PlannedCell, attempts: int, progress: Progress) -> None:
        self.outcomes[cell.name] = f"start {attempts}" if attempts > 1 else ""

    def dropped(self, cell: PlannedCell, progress: Progress) -> None:
        self.outcomes[cell.name] = f"dropped: {_DROPPED}"

    def ended(self, cell: PlannedCell, record: dict[str, Any], progress: Progress) -> None:
        self.outcomes[cell.name] = outcome(record, self.metric)

    def table(self, progress: Progress) -> Any:
        """The running ones, then the latest that ended, then the next."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        order = {"running": 0, "failed": 1, "finished": 2, "elsewhere": 3, "waiting": 4}
        cells = sorted(progress.cells, key=lambda cell: order[progress.status[cell.name]])
        table = Table(title=progress.line(), title_justify="left", box=box.SIMPLE_HEAD)
        for column in ("cell", "status", "steps", "result"):
            table.add_column(column, overflow="fold", justify="right" if column == "steps" else "left")
        for cell in cells[:_ROWS]:
            steps = f"{progress.steps[cell.name]}/{cell.steps}" if progress.status[cell.name] == "running" else ""
            values = (cell.name, progress.status[cell.name], steps, self.outcomes.get(cell.name, ""))
            table.add_row(*map(Text, values))
        if len(cells) > _ROWS:
            table.caption = f"and {len(cells) - _ROWS} more"
        return table


def make_view(metric: str) -> View:
    """A table on a terminal, lines elsewhere."""
    import sys

    return TableView(metric) if sys.stdout.isatty() else PlainView(metric)
