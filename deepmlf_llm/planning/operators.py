"""What each operator of a step computes and moves, by its shapes; of fake tensors as of real ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Work:
    """Of one operator.

    Args:
        flops: of a product of matrices or an attention; else 0.
        moved: bytes of what it reads and writes; 0 of a view.
        narrow: its result has 16 bits an element.
        unpacked: elements of a 4-bit weight that it makes whole.
    """

    flops: int
    moved: int
    narrow: bool
    unpacked: int = 0


class OperatorWork(TorchDispatchMode):
    """Notes every operator that runs: ``seen`` counts those that are alike."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[Work] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        made = list(_tensors(out))
        count = flop_registry.get(func.overloadpacket)
        flops = count(*args, **kwargs, out_val=out) if count is not None else 0
        moves = not (_is_view(func) or func.overloadpacket in _MAKE_ROOM)
        moved = sum(_bytes(tensor) for tensor in [*_tensors([*args, *kwargs.values()]), *made]) if moves else 0
        narrow = bool(made) and made[0].is_floating_point() and made[0].element_size() == 2
        unpacked = made[0].numel() if func.overloadpacket is torch.ops.aten.new_empty and _is_packed(args[0]) else 0
        self.seen[Work(int(flops), moved, narrow, unpacked)] += 1
        return out


_MAKE_ROOM = {torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.new_empty, torch.ops.aten.detach}


def _is_packed(weight: Tensor) -> bool:
    """Whether it holds a dry layer's 4-bit weight (see :mod:`~deepmlf_llm.planning.packed`)."""
    return weight.dtype == torch.uint8


def _is_view(func: Any) -> bool:
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


def _bytes(tensor: Tensor) -> int:
    """That hold its elements: what is only seen larger (``expand``) is read once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values if isinstance(values, (list, tuple)) else [values]:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
