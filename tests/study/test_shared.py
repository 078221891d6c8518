"""Nodes that share one study folder: real processes, one of them killed or stopped, and the table at the end."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from deepmlf_llm.errors import RunError
from deepmlf_llm.study import node as node_module
from deepmlf_llm.study.cell_process import Slot
from deepmlf_llm.study.claims import Claim
from deepmlf_llm.study.directory import StudyDirectory
from deepmlf_llm.study.live import PlainView
from deepmlf_llm.study.node import Node
from deepmlf_llm.study.results import read_all, read_record
from deepmlf_llm.study.runner import Runner
from tests.processes import at_work
from tests.study.test_runner import _timeless, attempts

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork and /proc"),
    pytest.mark.timeout(180),
]


@pytest.fixture
def cells(make_cell):
    return [make_cell(n, seed, max_steps=6, weight_decay=0.08) for n in (4, 8) for seed in (1, 2)]


@pytest.fixture
def run(make_plan, fake_recipe, cells):
    """One node's work, in this process."""

    def work(folder: Path, lease: float = 60.0, slots: int = 1, write=lambda text: None) -> list[dict]:
        plan, directory = make_plan(cells), StudyDirectory(folder)
        with Node(folder, lease) as node:
            directory.join(plan, node.name)
            places, view = [Slot(i) for i in range(slots)], PlainView("mae", write=write)
            return Runner(plan, directory, places, fake_recipe, view, lambda: plan.code, node).run()

    return work


@pytest.fixture
def start(run):
    """A node as a process of its own, forked: all is loaded. ``place``: the machine it takes itself to be on."""
    started: list[int] = []

    def fork(folder: Path, place: str | None = None, lease: float = 60.0) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid:
            started.append(pid)
            return pid
        code = 70
        try:
            if place is not None:
                node_module._place = lambda: place
            run(folder, lease)
            code = 0
        finally:
            os._exit(code)

    yield fork
    for pid in started:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            continue


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_until(holds, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def steps(folder: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in folder.glob("cells/*/run/metrics.jsonl"))


def table(folder: Path, cells) -> list[dict]:
    return [_timeless(record) for record in read_all(StudyDirectory(folder), cells)]


def test_two_nodes_share_the_cells_and_each_runs_once(tmp_path, start, run, cells):
    folder = tmp_path / "shared"
    pids = [start(folder), start(folder)]
    assert [ended(pid) for pid in pids] == [0, 0]
    run(tmp_path / "alone", slots=2)
    assert table(folder, cells) == table(tmp_path / "alone", cells)
    assert set(attempts(folder).values()) == {1}
    holders = {(path.parent / "claim-1.json").read_text() for path in folder.glob("cells/*/cell.json")}
    assert len({text.split('"node": ')[1].split(",")[0] for text in holders}) == 2
    assert not list(folder.glob("**/*.partial"))


@pytest.mark.parametrize("apart", [False, True], ids=["one machine", "as if on two machines"])
def test_one_of_two_nodes_killed_again_and_again_the_table_is_as_if_nothing_had_happened(
    tmp_path, start, run, cells, apart
):
    """kill -9 at random instants; the killed node is started again. On one machine its end is seen at once, elsewhere
    its lease has to run out."""
    run(tmp_path / "alone", slots=2)
    folder, chance = tmp_path / "killed", random.Random(int(apart))
    lease = 2.0 if apart else 60.0
    survivor = start(folder, "there" if apart else None, lease)
    killed = 0
    for number in range(2 if apart else 3):
        victim = start(folder, f"here {number}" if apart else None, lease)
        before = steps(folder)
        wait_until(lambda before=before: steps(folder) > before or len(table(folder, cells)) == 4)
        time.sleep(chance.uniform(0, 0.3))
        os.kill(victim, signal.SIGKILL)
        killed += ended(victim) == -signal.SIGKILL
    assert ended(survivor) == 0
    assert killed >= 1
    assert table(folder, cells) == table(tmp_path / "alone", cells)
    wait_until(lambda: not at_work(folder), 10)


def test_a_node_that_was_stopped_has_its_cell_ended_by_the_guard_and_does_not_take_it_back(tmp_path, start, run, cells):
    """It is not dead, only stopped: its cells must be over before another node begins them."""
    run(tmp_path / "alone", slots=2)
    folder = tmp_path / "stopped"
    sleeper = start(folder, "here", 2.0)
    wait_until(lambda: steps(folder) > 0)
    os.kill(sleeper, signal.SIGSTOP)
    (log,) = folder.glob("cells/*/log.txt")
    pid = int(log.read_text().split("pid ")[1].split()[0])
    wait_until(lambda: not Path("/proc", str(pid)).exists(), 5)
    assert ended(start(folder, "there", 2.0)) == 0
    assert table(folder, cells) == table(tmp_path / "alone", cells)
    before = {path: path.read_bytes() for path in folder.glob("cells/*/cell.json")}
    os.kill(sleeper, signal.SIGCONT)
    assert ended(sleeper) == 0
    assert {path: path.read_bytes() for path in folder.glob("cells/*/cell.json")} == before


def test_a_cell_that_is_another_nodes_by_now_ends_at_the_next_heartbeat(tmp_path, start, cells):
    """As where a whole machine stood still and woke up; no lease is waited for."""
    cells[1:] = []
    cells[0].settings["weight_decay"] = 1.0  # seconds a step: it is not done before the next heartbeat
    folder = tmp_path / "woken"
    sleeper = start(folder, "here", 12.0)
    wait_until(lambda: steps(folder) > 0)
    (log,) = folder.glob("cells/*/log.txt")
    pid = int(log.read_text().split("pid ")[1].split()[0])
    with Node(folder) as other:
        taken = Claim(log.parent, 2, other)
        taken.name_worker(os.getpid())
        wait_until(lambda: not Path("/proc", str(pid)).exists(), 5)
        assert read_record(log.parent, cells[0].fingerprint) is None
        taken.release()
    assert ended(sleeper) == 0
    assert [record["status"] for record in table(folder, cells)] == ["finished"]
    assert sorted(path.name for path in log.parent.glob("claim-*")) == ["claim-1.json", "claim-2.json", "claim-3.json"]


@pytest.mark.parametrize("removed", ["nodes", "cells/toy-n4-s1"])
def test_a_node_under_which_a_folder_is_removed_goes_on(tmp_path, run, cells, removed):
    """Without ``nodes/`` it makes that again; without the folder of a cell, that cell is dropped and begins anew."""
    cells[1:] = []
    cells[0].settings |= {"max_steps": 12, "weight_decay": 0.2}
    folder, lines = tmp_path / "study", []

    def remove() -> None:
        wait_until(lambda: steps(folder) > 0)
        while (folder / removed).exists():  # the cell writes there
            shutil.rmtree(folder / removed, ignore_errors=True)

    thread = threading.Thread(target=remove)
    thread.start()
    records = run(folder, lease=2.0, write=lines.append)
    thread.join()
    assert [record["status"] for record in records] == ["finished"]
    dropped = [line for line in lines if line.startswith("dropped   toy-n4-s1: its folder was removed, or is another")]
    assert len(dropped) == (removed != "nodes")
    assert sum(line.startswith("start") for line in lines) == 1 + len(dropped)
    assert attempts(folder) == {"toy-n4-s1": 1}


def test_what_failed_on_one_node_is_not_tried_again_by_the_other(tmp_path, start, make_cell, cells):
    cells[:] = [make_cell(4, 1, learning_rate=9.0), make_cell(8, 1, weight_decay=0.1)]
    folder = tmp_path / "failing"
    pids = [start(folder), start(folder)]
    assert [ended(pid) for pid in pids] == [0, 0]
    assert attempts(folder) == {"toy-n4-s1": 1, "toy-n8-s1": 1}
    assert read_record(folder / "cells" / "toy-n4-s1", cells[0].fingerprint)["status"] == "failed"


def test_a_node_with_other_cells_or_code_is_refused(tmp_path, make_plan, make_cell):
    directory = StudyDirectory(tmp_path / "study")
    directory.join(make_plan([make_cell(4, 1)]), "a")
    directory.join(make_plan([make_cell(4, 1)]), "b")
    with pytest.raises(RunError, match="does not have the cells that grid"):
        directory.join(make_plan([make_cell(8, 1)]), "c")
    with pytest.raises(RunError, match="does not have the code version and cells that"):
        directory.join(make_plan([make_cell(8, 1)], code="4567"), "c")
    assert [cell.name for cell in directory.planned()] == ["toy-n4-s1"]


def test_a_start_without_join_does_not_take_the_folder_from_nodes_at_work(tmp_path, start, make_plan, make_cell, cells):
    """Their cells would no longer be of the study: not in its table, not in its report."""
    cells[1:] = []
    cells[0].settings["weight_decay"] = 0.3
    folder = tmp_path / "shared"
    joined, directory = start(folder), StudyDirectory(folder)
    wait_until(lambda: steps(folder) > 0)
    (name,) = (path.stem for path in (folder / "nodes").glob("*.json"))
    others, watcher = make_plan([make_cell(8, 9)]), Node(folder)
    before = (folder / "study.json").read_bytes()
    with pytest.raises(RunError, match=f"node {name} works there on other cells than .* the same and add --join$"):
        directory.begin(others, watcher)
    with pytest.raises(RunError, match=f"node {name} works there on other code version than .* make them the same$"):
        directory.begin(make_plan(cells, code="4567"), watcher, helped=True)
    with pytest.raises(RunError, match=f"node {name} works there; add --join to help it, or wait"):
        directory.begin(make_plan(cells), watcher)
    directory.begin(make_plan(cells), watcher, helped=True)  # an executor that starts more nodes
    assert (folder / "study.json").read_bytes() == before
    assert ended(joined) == 0
    assert [record["status"] for record in table(folder, directory.planned())] == ["finished"]
    directory.begin(others, watcher)
    assert directory.planned() == others.cells


def test_a_study_file_without_cells_is_written_again(tmp_path, make_plan, make_cell):
    directory, plan = StudyDirectory(tmp_path), make_plan([make_cell(4, 1)])
    for cells in ("", ', "cells": [1, {}]'):
        (tmp_path / "study.json").write_text(f'{{"schema": 1, "name": "toy"{cells}}}')
        directory.begin(plan, Node(tmp_path))
        assert directory.planned() == plan.cells
