"""Which utterances go into which batch of which process: nothing dropped, nothing twice, the same for any launch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from deepmlf_llm.errors import RunError
from deepmlf_llm.planning.steps import steps_per_epoch

INDEX = "utterance_index"
"""Key of a training batch: which utterances of the split it holds [b]."""
GROUPED_BATCHES = 50
"""Steps within which utterances are sorted by length: short rows meet short rows, and epochs still differ."""


class BalancedBatches(Sampler[list[int]]):
    """Batches of one process. All processes' batches of a step together are one part of an even split of the shuffled
    data.

    The parts differ by at most one utterance in size (so there is no tiny last step). Which utterances a step has is a
    function of seed, epoch and position, and of how many a step may have, alone: a part is cut into the batches of its
    step, and each batch is dealt out to the processes in turn (so theirs differ by at most one too, and hold texts of
    the same lengths). 2 processes x 16 see the same steps as 1 process x 32, or as 1 process with 8 batches of 4.

    Args:
        size: utterances in the data set.
        per_process: most utterances in a batch.
        processes: how many there are.
        rank: which of them this is.
        seed: of the order.
        lengths: of each utterance; given, steps group similar ones.
        accumulated: batches a step and process.
        step: most utterances a step; default: as many as its batches have room for.

    Raises:
        RunError: fewer utterances than processes.
    """

    def __init__(
        self,
        size: int,
        per_process: int,
        processes: int = 1,
        rank: int = 0,
        seed: int = 0,
        lengths: Sequence[int] | None = None,
        accumulated: int = 1,
        step: int | None = None,
    ) -> None:
        if size < processes:
            raise RunError(f"the training split has {size} utterances for {processes} processes: start fewer processes")
        self.size, self.processes, self.rank, self.seed = size, processes, rank, seed
        step = per_process * processes * accumulated if step is None else step
        self.num_parts = steps_per_epoch(size, step, processes, accumulated)
        self.batches_per_step = min(accumulated, size // processes)
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.epoch = 0

    def __len__(self) -> int:
        return self.num_parts * self.batches_per_step

    @property
    def smallest(self) -> int:
        """Utterances in the smallest batch of any process."""
        return self.size // self.num_parts // self.batches_per_step // self.processes

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order; the same epoch gives the same batches."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        for part in self.parts():
            for batch in np.array_split(part, self.batches_per_step):
                yield batch[self.rank :: self.processes].tolist()

    def parts(self) -> list[np.ndarray]:
        """The steps of all processes together, in order."""
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(self.size)
        if self.lengths is None:
            return np.array_split(order, self.num_parts)
        groups = np.array_split(order, -(-self.num_parts // GROUPED_BATCHES))
        ordered = np.concatenate([group[np.argsort(self.lengths[group], kind="stable")] for group in groups])
        parts = np.array_split(ordered, self.num_parts)
        return [parts[i] for i in random.permutation(self.num_parts)]


class LongestFirst(Sampler[int]):
    """Order of evaluation: similar lengths together, the longest first, so that memory runs out at once or never."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.order = np.argsort(-np.asarray(lengths), kind="stable").tolist()

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)


class Indexed(Dataset[dict[str, Any]]):
    """A data set whose items also hold their own index, so that a message can name the utterances of a batch."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.dataset[index], INDEX: index}


class CollatedWithIndex:
    """Collates items of :class:`Indexed`; the indices are a tensor of the batch."""

    def __init__(self, collate: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {**self.collate(items), INDEX: torch.tensor([item[INDEX] for item in items])}
