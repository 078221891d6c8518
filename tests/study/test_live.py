"""Mirrors ``deepmlf_llm/study/live.py``."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from deepmlf_llm.study.live import PlainView, Progress, TableView


@pytest.fixture
def cells(make_cell):
    return [make_cell(n, 1, max_steps=10) for n in (4, 4000)]  # the second is a thousand times the work


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_time_left_follows_the_work_not_the_count(cells):
    clock = Clock()
    progress = Progress(cells, cells, clock)
    assert progress.seconds_left() is None
    assert progress.line() == "0 of 2 cells"
    small, large = cells
    progress.started(large)
    clock.now = 50.0
    progress.reached(large, 5)
    half = progress.seconds_left()
    assert half == pytest.approx(50.0, rel=0.15)
    progress.started(small)
    progress.ended(small, "failed")
    assert progress.seconds_left() < half
    assert progress.line() == f"1 of 2 cells, 1 failed, about {progress.seconds_left():.0f} s left"
    clock.now = 100.0
    progress.ended(large, "finished")
    assert progress.seconds_left() == 0
    assert progress.count("finished") == 1


def test_what_was_finished_before_counts_as_done(cells):
    progress = Progress(cells, cells[1:], Clock())
    assert progress.line() == "1 of 2 cells"


def test_plain_lines(cells, make_cell):
    lines: list[str] = []
    clock = Clock()
    view, progress = PlainView("mae", every=0.0, write=lines.append), Progress(cells, cells, clock)
    progress.started(cells[0])
    view.started(cells[0], 2, progress)
    progress.reached(cells[0], 5)
    view.show(progress)
    clock.now = 7.0
    progress.ended(cells[0], "finished")
    record = {"status": "finished", "metrics": {"validation": {"mae": 0.75}}}
    view.ended(cells[0], record, progress)
    view.ended(cells[0], {"status": "failed", "run_info": {"reason": "no memory"}}, progress)
    assert lines[0] == "start     toy-n4-s1 (start 2)"
    assert lines[1].endswith("running: toy-n4-s1 50%")
    assert lines[2].startswith("finished  toy-n4-s1: validation mae 0.7500 (7 s); 1 of 2 cells")
    assert lines[3].startswith("failed    toy-n4-s1: no memory")


def test_table_shows_the_running_ones_first(make_cell):
    cells = [make_cell(n, 1) for n in range(1, 31)]
    progress = Progress(cells, cells[1:], Clock())
    progress.started(cells[20])
    progress.reached(cells[20], 2)
    view = TableView("mae")
    view.ended(cells[0], {"status": "failed", "run_info": {"reason": "[red]no memory"}}, progress)
    console = Console(file=io.StringIO(), width=100)
    console.print(view.table(progress))
    text = console.file.getvalue()
    rows = [line for line in text.splitlines() if line.startswith(" ") and "toy-" in line]
    assert "toy-n21-s1" in rows[0]
    assert "2/3" in rows[0]
    assert "[red]no memory" in rows[1]
    assert "and 6 more" in text
