"""Weighing batches: a step over several batches and processes has exactly the gradient of one large batch.

Each part of the loss is a mean over what it counts: utterances (task, fusion, text), utterances with any audiovisual
frame (av), predicted tokens (lm). A mean of means is not the mean where batches differ in those counts, so each part of
each batch is weighted by its batch's share of the count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from deepmlf_llm.config.method import ObjectiveConfig

COUNTED_BY = {"task": 0, "fusion": 0, "text": 0, "av": 1, "lm": 2}


def batch_counts(batch: Mapping[str, Tensor], modalities: Iterable[str]) -> Tensor:
    """Utterances, utterances with any frame of any modality, tokens that predict a real one: [3], float."""
    mask = batch["attention_mask"]
    present = torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
    for name in modalities:
        present |= batch[f"{name}_mask"].any(dim=1)
    predicted = (mask[:, 1:] * mask[:, :-1]).sum()
    return torch.stack([torch.full_like(predicted, len(mask)), present.sum(), predicted]).float()


def weighted_loss(
    objective: ObjectiveConfig, losses: Mapping[str, Tensor], share: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch as its part of the step's, and the parts, detached.

    Args:
        objective: the weights.
        losses: unweighted parts of this batch, means.
        share: this batch's share of each count, times the number of processes (which average their gradients) [3].
    """
    weights = {
        "task": 1.0,
        "fusion": objective.lambda_fusion,
        "av": objective.lambda_av,
        "text": objective.lambda_text,
        "lm": objective.gamma,
    }
    parts = {name: part * share[COUNTED_BY[name]] for name, part in losses.items()}
    total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
    return total, {"loss": total.detach(), **{f"loss_{name}": part.detach() for name, part in parts.items()}}


class LossWindow:
    """Sums of the loss and its parts since the last line of the log; stays on the device until then."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sums: dict[str, Tensor] = {}
        self.steps = 0

    def add(self, parts: Mapping[str, Tensor]) -> None:
        """Adds one batch."""
        for name, part in parts.items():
            self._sums[name] = self._sums.get(name, torch.zeros((), device=self.device)) + part

    def drain(self) -> dict[str, float]:
        """Means over steps and processes; the window starts anew."""
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name] for name in names])
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
            sums = sums / torch.distributed.get_world_size()
        values = (sums / max(self.steps, 1)).tolist()
        self._sums.clear()
        self.steps = 0
        return dict(zip(names, values, strict=True))
