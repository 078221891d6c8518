"""The first gradients, looked at: a group that silently receives none ends the run at once.

Typical causes elsewhere: activation checkpointing with frozen inputs, weights repacked by an evaluation, a cut graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deepmlf_llm.errors import RunError

AV_GROUP = "av_encoder"
BEHIND_ZERO = 4
"""Steps that the AV encoder may go without a gradient where it has no loss of its own: until a gate that starts shut
has opened. The first step moves nothing where the learning rate warms up from 0."""


class FirstGradients:
    """Watches every trainable group until each has had a gradient that is not zero.

    Hooks see the gradients as autograd makes them, so it is the same under DDP and every ZeRO stage.

    Args:
        groups: name -> (parameter name, parameter), trainable ones.
        waits: group -> steps that it may go without, where what stands between it and the loss starts at 0 (a gate
            that starts shut, a last layer of zeros) and has to move first.
    """

    def __init__(
        self, groups: Mapping[str, Iterable[tuple[str, nn.Parameter]]], waits: Mapping[str, int] | None = None
    ) -> None:
        self.waits = waits or {}
        self.names = [name for name, members in groups.items() if list(members)]
        self._seen: dict[str, list[Tensor]] = {name: [] for name in self.names}
        self._handles = [
            parameter.register_hook(self._watcher(name)) for name, members in groups.items() for _, parameter in members
        ]
        self._alive: set[str] = set()
        self._frames = False
        self._checks = 0

    @property
    def done(self) -> bool:
        return not self._handles

    def saw_batch(self, masks: Iterable[Tensor]) -> None:
        """Notes whether the batch held any audiovisual frame: without one, the AV encoder rightly learns nothing."""
        if not self.done:
            self._frames |= any(bool(mask.any()) for mask in masks)

    def check(self, step: int) -> None:
        """After the backward passes of a step, on every process.

        Raises:
            RunError: a group has none although it should.
        """
        if self.done:
            return
        alive, frames = self._over_processes()
        self._alive |= {name for name, any_gradient in zip(self.names, alive, strict=True) if any_gradient}
        dead = [n for n in self.names if n not in self._alive and (n != AV_GROUP or frames)]
        self._checks += 1
        dead = [name for name in dead if self._checks > self.waits.get(name, 0)]
        if dead:
            self._stop_watching()
            raise RunError(f"step {step}: no gradient reaches {', '.join(dead)}, although it is to be trained")
        if self._alive == set(self.names):
            self._stop_watching()

    def _watcher(self, name: str) -> Any:
        seen = self._seen[name]

        def watch(gradient: Tensor) -> None:
            seen.append(gradient.detach().count_nonzero() > 0)  # stays on the device, so nothing waits for it here

        return watch

    def _over_processes(self) -> tuple[list[bool], bool]:
        rows = []
        for name in self.names:
            seen = self._seen[name]
            rows.append(torch.stack(seen).any().float() if seen else torch.zeros(()))
            seen.clear()
        device = next((row.device for row in rows if row.is_cuda), torch.device("cpu"))
        flags = torch.stack([*(row.to(device) for row in rows), torch.tensor(float(self._frames), device=device)])
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        values = flags.tolist()
        return [v > 0 for v in values[:-1]], values[-1] > 0

    def _stop_watching(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def average_running_statistics(model: nn.Module) -> None:
    """Sets BatchNorm's running mean and variance to their mean over the processes, which then hold one model.

    To be done after every step: where it is done for evaluations and checkpoints alone, one more of these rounds
    differently, and a run that was stopped at any step ends with other last bits than one that was not.
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return
    found = [buffer for name, buffer in model.named_buffers() if name.endswith(("running_mean", "running_var"))]
    if not found:
        return
    together = torch.cat([buffer.flatten() for buffer in found])
    torch.distributed.all_reduce(together)
    together /= torch.distributed.get_world_size()
    for buffer, mean in zip(found, together.split([buffer.numel() for buffer in found]), strict=True):
        buffer.copy_(mean.view_as(buffer))


def running_statistics(module: nn.Module) -> list[Tensor]:
    """BatchNorm's running mean, variance and counter, of one module."""
    if not isinstance(module, nn.BatchNorm1d):
        return []
    return [
        buffer for buffer in (module.running_mean, module.running_var, module.num_batches_tracked) if buffer is not None
    ]
