"""Mirrors ``deepmlf_llm/study/claims.py``."""

from __future__ import annotations

import os
import shutil
import threading

import pytest

from deepmlf_llm.study import claims
from deepmlf_llm.study.claims import take, turn
from deepmlf_llm.study.node import Node, process_mark
from tests.study.test_node import Clock


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    """Makes nodes of one study that take each other for other machines, with a clock that all watch by."""
    monkeypatch.setattr("deepmlf_llm.study.node._place", lambda: None)
    clock = Clock()

    def make() -> Node:
        node = Node(tmp_path / "study", lease=30.0, clock=clock)
        (tmp_path / "study" / "nodes").mkdir(parents=True, exist_ok=True)
        node.beat()
        return node

    return make, clock, tmp_path / "study" / "cells" / "c"


def test_of_many_that_ask_at_once_one_gets_it(nodes):
    make, _, cell = nodes
    asking = [make() for _ in range(8)]
    together, found = threading.Barrier(8), []

    def ask(node: Node) -> None:
        together.wait()
        found.append(take(node, cell))

    threads = [threading.Thread(target=ask, args=(node,)) for node in asking]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(claim is not None for claim in found) == 1
    assert [path.name for path in cell.iterdir()] == ["claim-1.json"]


def test_held_released_and_taken_again(nodes):
    make, _, cell = nodes
    a, b = make(), make()
    first = take(a, cell)
    assert first is not None
    assert take(b, cell) is None
    assert take(a, cell) is None  # nor twice by the same one
    first.release()
    second = take(b, cell)
    assert (second.number, second.is_held(), first.is_held()) == (2, True, False)
    first.release()  # late: it is no longer its to release
    assert take(a, cell) is None


def test_a_claim_whose_place_was_removed_is_lost_though_the_numbers_begin_anew(nodes):
    make, _, cell = nodes
    a, b = make(), make()
    first = take(a, cell)
    shutil.rmtree(cell)
    assert not first.is_held()
    first.release()  # nothing is left to release
    assert not cell.exists()
    second = take(b, cell)
    assert (second.number, second.is_held(), first.is_held()) == (1, True, False)
    first.release()
    assert second.is_held()
    assert take(a, cell) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_claim_that_was_written_over_is_lost(nodes, content):
    make, _, cell = nodes
    claim = take(make(), cell)
    claim.path.write_text(content)
    assert not claim.is_held()


def test_a_dead_nodes_claim_is_taken_over_once(nodes, monkeypatch):
    """Two watchers have both judged it: the second one must not take what the first one has just taken."""
    make, clock, cell = nodes
    a, b, c = make(), make(), make()
    lost = take(a, cell)
    assert take(b, cell) is take(c, cell) is None
    clock.now += 29
    assert take(b, cell) is None
    clock.now += 2
    judged = os.listdir(cell)
    mine = take(b, cell)
    assert (mine.number, lost.is_held()) == (2, False)
    monkeypatch.setattr(claims.os, "listdir", lambda path: judged)  # what a slow file system still shows to c
    assert take(c, cell) is None
    monkeypatch.undo()
    assert take(c, cell) is None
    assert mine.is_held()


def test_a_node_that_beats_keeps_its_claim(nodes):
    make, clock, cell = nodes
    a, b = make(), make()
    take(a, cell)
    for _ in range(5):
        assert take(b, cell) is None
        clock.now += 20
        a.beat()
    assert take(b, cell) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_claim_without_a_word_goes_after_the_lease(nodes, content):
    make, clock, cell = nodes
    cell.mkdir(parents=True)
    (cell / "claim-1.json").write_text(content)
    b = make()
    assert take(b, cell) is None
    clock.now += 31
    assert take(b, cell).number == 2


def test_what_a_dead_node_left_at_work_here_is_waited_for(nodes, monkeypatch):
    make, _, cell = nodes
    monkeypatch.undo()
    if process_mark(os.getpid()) is None:
        pytest.skip("needs /proc")
    a, b = make(), make()
    take(a, cell).name_worker(os.getpid())
    monkeypatch.setattr(b, "is_dead", lambda name: True)
    assert take(b, cell) is None
    (cell / "claim-1.json").write_text((cell / "claim-1.json").read_text().replace(f" {os.getpid()},", " 999999999,"))
    assert take(b, cell) is not None


def test_turns_follow_each_other(nodes):
    make, _, cell = nodes
    a, b = make(), make()
    order = []

    def other() -> None:
        with turn(b, cell, wait=0.01):
            order.append("b")

    with turn(a, cell):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.1)
        order.append("a")
    thread.join()
    assert order == ["a", "b"]
