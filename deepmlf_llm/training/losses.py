"""Over how many utterances and tokens the loss of a step goes: all of its batches, on all processes.

With that a step over several batches and processes has exactly the gradient of one large batch (see
:mod:`~deepmlf_llm.fusion.objective`, which holds the terms and combines them).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from deepmlf_llm.fusion.objective import term_counts
from deepmlf_llm.fusion.unimodal import unimodal_of


def batch_counts(
    batch: Mapping[str, Tensor], modalities: Iterable[str], unimodal: Mapping[str, str] | None = None
) -> dict[str, Tensor]:
    """Term of the loss -> what it is a mean over in this batch, whole numbers.

    Args:
        batch: of utterances.
        modalities: names of them.
        unimodal: terms that go over labels of one modality alone (:func:`~deepmlf_llm.config.labels.unimodal_terms`).
    """
    mask = batch["attention_mask"]
    heard = {name: batch[f"{name}_mask"].any(dim=1) for name in modalities}
    present = torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
    for name in heard:
        present |= heard[name]
    alone = unimodal_of(unimodal, batch["unimodal_labels"], heard) if unimodal else None
    return term_counts(mask, present, batch["labels"], alone)


def step_counts(
    batches: Iterable[Mapping[str, Tensor]],
    modalities: Iterable[str],
    device: torch.device | str,
    processes: int = 1,
    unimodal: Mapping[str, str] | None = None,
) -> dict[str, Tensor]:
    """Term of the loss -> what each batch's sum is divided by, scalars on ``device``.

    Args:
        batches: of one step, on this process.
        modalities: names of them.
        processes: how many train together; all of them call this. They average their gradients, so each divides by its
            share of the total.
        unimodal: as for :func:`batch_counts`.
    """
    modalities = tuple(modalities)
    counted = [batch_counts(batch, modalities, unimodal) for batch in batches]
    totals = torch.stack([torch.stack([counts[name] for counts in counted]).sum() for name in counted[0]]).to(device)
    if processes > 1:
        torch.distributed.all_reduce(totals)
    return dict(zip(counted[0], (totals.double() / processes).unbind(), strict=True))


def logged_parts(loss: Tensor, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The loss of a batch and its terms by their names in the log, detached."""
    return {"loss": loss.detach(), **{f"loss_{name}": part.detach() for name, part in losses.items()}}


class LossWindow:
    """Sums of the loss and its parts since the last line of the log; stays on the device until then."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sums: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}
        self.steps = 0

    def add(self, parts: Mapping[str, Tensor]) -> None:
        """Adds one batch."""
        for name, part in parts.items():
            self._sums[name] = self._sums.get(name, torch.zeros((), device=self.device)) + part

    def end_step(self, counts: bool = True) -> None:
        """After the batches of a step; one that was left out does not count."""
        if counts:
            self.steps += 1
        else:
            self._sums = dict(self._before)
        self._before = dict(self._sums)

    def drain(self) -> dict[str, float]:
        """Means over steps and processes, nothing where all of them were left out; the window starts again."""
        names = sorted(self._sums)
        if not names:
            return {}
        sums = torch.stack([self._sums[name] for name in names])
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
            sums = sums / torch.distributed.get_world_size()
        values = (sums / max(self.steps, 1)).tolist()
        self._sums, self._before = {}, {}
        self.steps = 0
        return dict(zip(names, values, strict=True))

    def state(self) -> dict[str, Any]:
        """The open window, for a checkpoint; a float of JSON is one of 64 bits, exactly."""
        sums = {name: [float(value), str(value.dtype).removeprefix("torch.")] for name, value in self._sums.items()}
        return {"steps": self.steps, "sums": sums}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on with what :meth:`state` gave."""
        self.steps = state["steps"]
        self._sums = {
            name: torch.tensor(value, dtype=getattr(torch, dtype), device=self.device)
            for name, (value, dtype) in state["sums"].items()
        }
        self._before = dict(self._sums)


def mean_window(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The open windows of all processes as one that each of another number of them goes on with: what is logged is a
    mean over the processes."""
    if len(states) == 1:
        return dict(states[0])
    names = states[0]["sums"]
    sums = {name: [sum(s["sums"][name][0] for s in states) / len(states), kind] for name, (_, kind) in names.items()}
    return {**states[0], "sums": sums}
