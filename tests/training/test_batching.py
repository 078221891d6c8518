from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepmlf_llm.errors import RunError
from deepmlf_llm.planning.steps import steps_per_epoch
from deepmlf_llm.training.batching import BalancedBatches, LongestFirst

sizes = st.tuples(st.integers(1, 200), st.integers(1, 40), st.integers(1, 4)).filter(lambda s: s[0] >= s[2])


def batches(
    size: int, per_process: int, processes: int, rank: int, epoch: int = 0, grouped: bool = True
) -> list[list[int]]:
    lengths = np.random.default_rng(0).integers(1, 50, size) if grouped else None
    sampler = BalancedBatches(size, per_process, processes, rank, seed=1, lengths=lengths)
    sampler.set_epoch(epoch)
    made = list(sampler)
    assert len(made) == len(sampler)
    return made


@given(sizes, st.booleans())
def test_each_utterance_once_and_batches_of_equal_size(size: tuple[int, int, int], grouped: bool) -> None:
    utterances, per_process, processes = size
    by_rank = [batches(utterances, per_process, processes, rank, grouped=grouped) for rank in range(processes)]
    assert sorted(i for rank in by_rank for batch in rank for i in batch) == list(range(utterances))
    assert len({len(rank) for rank in by_rank}) == 1  # else a process would wait for ever
    for together in zip(*by_rank, strict=True):
        counts = [len(batch) for batch in together]
        assert min(counts) >= 1
        assert max(counts) <= max(per_process, 2)
        assert max(counts) - min(counts) <= 1


@given(sizes.filter(lambda s: s[1] > 1))
def test_more_processes_see_the_same_steps(size: tuple[int, int, int]) -> None:
    utterances, per_process, processes = size
    alone = [set(batch) for batch in batches(utterances, per_process * processes, 1, 0)]
    shared = zip(*(batches(utterances, per_process, processes, rank) for rank in range(processes)), strict=True)
    assert [set().union(*together) for together in shared] == alone


worlds = st.tuples(st.integers(1, 4), st.integers(1, 4))


@given(st.integers(1, 150), st.integers(1, 24), worlds, worlds, st.booleans())
def test_a_step_has_the_same_utterances_in_any_world(
    size: int, step: int, world: tuple[int, int], other: tuple[int, int], grouped: bool
) -> None:
    """(processes, batches a step and process): the order is a function of seed, epoch and position alone."""

    def steps(processes: int, accumulated: int) -> list[set[int]]:
        lengths = np.random.default_rng(0).integers(1, 50, size) if grouped else None
        per_process = -(-step // (processes * accumulated))
        made = []
        for rank in range(processes):
            sampler = BalancedBatches(size, per_process, processes, rank, 3, lengths, accumulated, step)
            sampler.set_epoch(5)
            rows = list(sampler)
            assert all(0 < len(batch) <= max(per_process, 2) for batch in rows)
            assert min(map(len, rows)) >= sampler.smallest
            assert len(rows) == len(sampler) == sampler.num_parts * sampler.batches_per_step
            cut = sampler.batches_per_step
            made.append([set().union(*rows[at : at + cut]) for at in range(0, len(rows), cut)])
        return [set().union(*together) for together in zip(*made, strict=True)]

    if size >= max(world[0], other[0]):
        counts = {steps_per_epoch(size, step, *w) for w in (world, other)}
        found = [steps(*world), steps(*other)]
        assert {len(steps) for steps in found} == counts
        if len(counts) == 1:
            assert found[0] == found[1]


def test_a_step_is_no_larger_than_asked_where_processes_do_not_divide_it() -> None:
    sampler = BalancedBatches(96, 11, 3, step=32)
    assert [len(part) for part in sampler.parts()] == [32, 32, 32]


def test_epochs_differ_and_repeat() -> None:
    assert batches(100, 8, 1, 0, epoch=0) == batches(100, 8, 1, 0, epoch=0)
    assert batches(100, 8, 1, 0, epoch=0) != batches(100, 8, 1, 0, epoch=1)


def test_grouping_saves_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 400)

    def padding(sampler: BalancedBatches) -> int:
        return sum(int(lengths[batch].max() * len(batch) - lengths[batch].sum()) for batch in sampler)

    assert padding(BalancedBatches(400, 16, lengths=lengths)) < 0.2 * padding(BalancedBatches(400, 16))


def test_smallest_batch_is_known_beforehand() -> None:
    assert min(len(batch) for rank in (0, 1) for batch in batches(33, 8, 2, rank)) == BalancedBatches(33, 8, 2).smallest


def test_fewer_utterances_than_processes_are_refused() -> None:
    with pytest.raises(RunError, match="3 utterances for 4 processes"):
        BalancedBatches(3, 8, 4)


def test_evaluation_goes_from_long_to_short() -> None:
    assert list(LongestFirst([3, 9, 1, 9])) == [1, 3, 0, 2]
