"""Averages of what is trained: over steps, exponentially (EMA), and over the last evaluations.

PyTorch's own averaging (``torch.optim.swa_utils``) on the tensors of the adapter's file, so that the frozen base is not
copied. Running statistics of BatchNorm are part of them and are averaged in the same way; their counters are copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from deepmlf_llm.adapters.compatibility import adapter_tensors
from deepmlf_llm.errors import RunError
from deepmlf_llm.paths import shown

EMA_FILE = "ema.safetensors"
_STEPS = "steps"


def trained_tensors(model: Any) -> dict[str, Tensor]:
    """What is trained, and its buffers, by the keys of an adapter's file: the live tensors."""
    return adapter_tensors(model, model.base_model.active_stack_name)


@torch.no_grad()
def copy_into(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Gives the trained tensors of a model these values."""
    for name, tensor in trained_tensors(model).items():
        tensor.copy_(tensors[name])


def _average(
    total: Mapping[str, Tensor], current: Mapping[str, Tensor], average: Callable[..., None], count: int
) -> None:
    """Moves ``total`` towards ``current``; whole numbers are taken over."""
    floating = [name for name, tensor in total.items() if tensor.is_floating_point()]
    average([total[name] for name in floating], [current[name].detach() for name in floating], count)
    for name in total.keys() - set(floating):
        total[name].copy_(current[name])


class MovingAverage:
    """EMA of a model's trained tensors. It begins as those after the first step.

    Args:
        decay: share of the average that a step leaves as it is. After n steps at most ``(1 + n) / (10 + n)``: a short
            run would otherwise be an average of how it began.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.tensors: dict[str, Tensor] = {}

    def update(self, current: Mapping[str, Tensor]) -> None:
        """After a step; ``current`` is what is trained."""
        if self.steps == 0:
            self.tensors = {name: tensor.detach().clone() for name, tensor in current.items()}
        else:
            decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
            _average(self.tensors, current, get_ema_multi_avg_fn(decay), self.steps)
        self.steps += 1

    def save(self, directory: Path) -> None:
        """Into a checkpoint."""
        whole = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        save_file(whole, directory / EMA_FILE, metadata={_STEPS: str(self.steps)})

    def load(self, directory: Path, current: Mapping[str, Tensor]) -> None:
        """From a checkpoint, bit for bit; onto the devices of ``current``.

        Raises:
            RunError: it has none, or one of another model.
        """
        path = directory / EMA_FILE
        try:
            with safe_open(path, framework="pt") as file:
                steps = int(file.metadata()[_STEPS])
            tensors = load_file(path)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            raise RunError(
                f"{shown(path)}: missing or damaged; delete the checkpoint to go on from an older one"
            ) from None
        shapes = ({name: t.shape for name, t in found.items()} for found in (tensors, current))
        if next(shapes) != next(shapes):
            raise RunError(f"{shown(path)}: of another model; delete the checkpoint to go on from an older one")
        self.steps, self.tensors = steps, {name: t.to(current[name].device) for name, t in tensors.items()}


def mean_of(adapters: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several adapters, tensor by tensor; of counters the last one's."""
    total: dict[str, Tensor] = {}
    for count, tensors in enumerate(adapters):
        if total:
            _average(total, tensors, get_swa_multi_avg_fn(), count)
        else:
            total = {name: tensor.clone() for name, tensor in tensors.items()}
    return total
