"""Mirrors ``deepmlf_llm/study/node.py``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from deepmlf_llm.errors import FileError
from deepmlf_llm.study.node import NODES, Node, is_alive, is_gone, process_mark

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def beat(folder, name, number, lease=30.0, process=None):
    (folder / NODES).mkdir(exist_ok=True)
    content = {"node": name, "beat": number, "lease": lease, "process": process}
    (folder / NODES / f"{name}.json").write_text(json.dumps(content))


def test_a_node_is_dead_when_its_heartbeat_has_not_changed_for_its_lease(tmp_path):
    """By the watcher's own clock alone: what the file system says of times may be hours off."""
    clock = Clock()
    watcher = Node(tmp_path, lease=5.0, clock=clock)
    beat(tmp_path, "other", 7)
    os.utime(tmp_path / NODES / "other.json", (0, 0))
    assert not watcher.is_dead("other")  # time counts from here
    clock.now += 29
    assert not watcher.is_dead("other")
    beat(tmp_path, "other", 8)
    os.utime(tmp_path / NODES / "other.json", (4e9, 4e9))
    clock.now += 29
    assert not watcher.is_dead("other")
    clock.now += 29
    assert not watcher.is_dead("other")
    clock.now += 2
    assert watcher.is_dead("other")
    beat(tmp_path, "other", 9)  # it had only been stopped
    assert not watcher.is_dead("other")


def test_a_heartbeat_that_is_not_there_is_dead_after_the_watchers_lease(tmp_path):
    clock = Clock()
    watcher = Node(tmp_path, lease=5.0, clock=clock)
    assert not watcher.is_dead("nobody")
    clock.now += 6
    assert watcher.is_dead("nobody")
    assert not watcher.is_dead(watcher.name)


def test_a_node_beats_until_its_end_and_tells_those_that_listen(tmp_path):
    beats: list[int] = []
    with Node(tmp_path, lease=0.3) as node:
        path = tmp_path / NODES / f"{node.name}.json"
        node.pulses.append(lambda: beats.append(json.loads(path.read_text())["beat"]))
        deadline = time.monotonic() + 20
        while len(beats) < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
    assert beats[:4] == [2, 3, 4, 5]  # the first one was written before anybody listened
    assert list((tmp_path / NODES).iterdir()) == []


def test_where_the_heartbeat_cannot_be_written_nobody_is_told(tmp_path):
    with Node(tmp_path, lease=0.3) as node:
        path = tmp_path / NODES / f"{node.name}.json"
        path.unlink()
        path.mkdir()  # in its place
        time.sleep(0.1)
        told: list[int] = []
        node.pulses.append(lambda: told.append(1))
        time.sleep(0.3)
        assert told == []
        path.rmdir()


def test_where_the_folder_of_heartbeats_was_removed_it_is_made_again(tmp_path):
    """Not so the study's: without it the work of this node has nowhere to go."""
    with Node(tmp_path / "study") as node:
        shutil.rmtree(tmp_path / "study" / NODES)
        node.beat()
        assert json.loads((tmp_path / "study" / NODES / f"{node.name}.json").read_text())["beat"] == 2
        shutil.rmtree(tmp_path / "study")
        with pytest.raises(FileError):
            node.beat()
    assert not (tmp_path / "study").exists()


@linux
def test_a_process_of_this_machine_that_has_ended_is_seen_at_once(tmp_path):
    process = subprocess.Popen(["sleep", "60"])
    mark = process_mark(process.pid)
    assert is_alive(mark)
    assert not is_gone(mark)
    beat(tmp_path, "other", 1, process=mark)
    watcher = Node(tmp_path)
    assert not watcher.is_dead("other")
    process.kill()
    while process_mark(process.pid) == mark:  # until the kernel has ended it; nobody has waited for it yet
        time.sleep(0.01)
    assert watcher.is_dead("other")
    process.wait()
    assert watcher.is_dead("other")
    assert not is_alive(mark)


@linux
def test_what_may_run_elsewhere_is_neither_gone_nor_alive():
    place, pid, started = process_mark(os.getpid())
    elsewhere = ["another boot", pid, started - 1]
    assert not is_gone(elsewhere)
    assert not is_alive(elsewhere)
    assert is_gone([place, pid, started - 1])  # the number was given to another process
    for damaged in (None, [], [place, "x", 1], [place, -1, 1], "x"):
        assert not is_gone(damaged)


@linux
def test_a_node_at_work_on_this_machine_is_named_at_once(tmp_path):
    said: list[str] = []
    watcher = Node(tmp_path)
    assert watcher.at_work(said.append) is None  # no folder yet
    with watcher:
        (tmp_path / NODES / "grid.json").write_text("[1]")  # no heartbeat
        assert watcher.at_work(said.append) is None  # its own is none of another node
        with Node(tmp_path) as other:
            assert watcher.at_work(said.append) == other.name
        beat(tmp_path, "killed", 3, process=[*process_mark(os.getpid())[:2], 1])
        assert watcher.at_work(said.append) is None
    assert said == []
    assert [path.name for path in (tmp_path / NODES).iterdir()] == ["grid.json"]


def test_a_node_of_another_machine_is_at_work_if_it_beats_and_dead_after_its_lease(tmp_path):
    """Whoever asks has to look for so long, once: the heartbeat of a dead one goes."""

    class Ticking(Clock):
        def __call__(self) -> float:
            self.now += 1
            if self.beats:
                beat(tmp_path, "other", int(self.now))
            return self.now

        beats = True

    said: list[str] = []
    clock = Ticking()
    watcher = Node(tmp_path, lease=9.0, clock=clock)
    beat(tmp_path, "other", 7)
    assert watcher.at_work(said.append, wait=0) == "other"
    assert said == ["looking whether node other is still at work: for its lease, unless it is seen before"]
    clock.beats, began = False, clock.now
    assert watcher.at_work(said.append, wait=0) is None
    assert 30 < clock.now - began < 35
    assert list((tmp_path / NODES).iterdir()) == []
    assert watcher.is_dead("other")  # known: what it held is free now
    assert watcher.at_work(said.append, wait=0) is None
    assert len(said) == 2
    beat(tmp_path, "other", 99)  # it had only been stopped
    assert not watcher.is_dead("other")
