"""Mirrors ``scripts/planner_pairs.py``: what an allocator's events say. A pair itself is in test_validate_plan.py."""

from __future__ import annotations

import torch

from scripts.planner_pairs import Event, alive_within, covered, visible_storages

EVENTS = [
    Event(1, 0xA, 100),
    Event(2, 0xB, 50),
    Event(3, 0xB, -50),
    Event(11, 0xC, 30),
    Event(12, 0xC, -30),
    Event(13, 0xD, 20),
    Event(21, 0xE, 500),
]


def test_what_was_there_and_the_most_at_once_within_a_span() -> None:
    assert alive_within(reversed(EVENTS), 10, 20) == ({0xA: 100}, 130)
    assert alive_within(EVENTS, 4, 9) == ({0xA: 100}, 100)
    assert alive_within(EVENTS, 22, 30) == ({0xA: 100, 0xD: 20, 0xE: 500}, 620)


def test_memory_that_an_unwatched_thread_gave_back_counts_until_it_is_handed_out_again() -> None:
    events = [Event(1, 0xA, 100), Event(11, 0xA, 40), Event(12, 0xF, -70)]
    assert alive_within(events, 10, 20) == ({0xA: 100}, 100)
    assert alive_within([*events, Event(13, 0xB, 70)], 10, 20)[1] == 110


def test_parts_of_one_mapped_file_count_once() -> None:
    assert covered([(100, 50), (120, 10), (140, 30), (300, 5)]) == 70 + 5


def test_the_collector_sees_tensors_and_their_views_as_one() -> None:
    tensor = torch.zeros(1000)
    views = [tensor[:10], tensor[10:], torch.nn.Parameter(tensor)]
    assert visible_storages()[tensor.data_ptr()] == 4000
    del views
