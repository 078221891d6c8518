"""How many optimizer steps a run takes: the Trainer's rule, without a Trainer."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Steps:
    """Of one run.

    Args:
        per_epoch: optimizer steps of a whole epoch; the last may be of fewer batches.
        total: of the run, unless it stops early.
    """

    per_epoch: int
    total: int


def steps_per_epoch(utterances: int, step: int, processes: int, accumulated: int) -> int:
    """Optimizer steps of an epoch: as few as hold everything, but none so small that a batch of a process is empty.

    Args:
        utterances: in the training split.
        step: most utterances a step.
        processes: how many train together.
        accumulated: batches a step and process; fewer where there are not utterances enough.
    """
    cells = processes * max(1, min(accumulated, utterances // processes))
    return max(1, min(math.ceil(utterances / step), utterances // cells))


def planned_steps(
    utterances: int,
    per_device: int,
    processes: int,
    accumulated: int,
    epochs: float,
    max_steps: int = -1,
    step: int | None = None,
) -> Steps:
    """Steps of a run, as transformers' Trainer counts them.

    Args:
        utterances: in the training split.
        per_device: utterances a batch and process.
        processes: how many train together.
        accumulated: batches a step and process.
        epochs: may be a fraction; a step that has begun is made.
        max_steps: overrides ``epochs`` when positive.
        step: most utterances a step; default: as many as the batches have room for.
    """
    if step is None:
        batches = math.ceil(utterances / (per_device * processes))
        per_epoch = max(1, math.ceil(batches / accumulated))
    else:
        per_epoch = steps_per_epoch(utterances, step, processes, accumulated)
    return Steps(per_epoch, max_steps if max_steps > 0 else math.ceil(epochs * per_epoch))
