"""Bytes of tensors that are alive while code runs, storage by storage; of fake tensors as of real ones."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):
    """Counts every new storage from its first operator to its end.

    Args:
        held: tensors that were there before and do not count.
        granule: an allocator's smallest block, bytes; each storage takes whole ones.
    """

    def __init__(self, held: Iterable[Tensor] = (), granule: int = 1) -> None:
        super().__init__()
        self.granule = granule
        self.now = 0
        self.peak = 0
        self.operators = 0
        self._known: dict[int, weakref.ref[Any]] = {}
        for tensor in held:
            self._note(tensor, counts=False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators += 1
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            self._note(tensor, counts=True)
        return out

    def _note(self, tensor: Tensor, counts: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = -(-storage.nbytes() // self.granule) * self.granule if counts else 0

        def ended(_: Any) -> None:
            self._known.pop(key, None)
            self.now -= size

        self._known[key] = weakref.ref(storage, ended)
        self.now += size
        self.peak = max(self.peak, self.now)


def _tensors(out: Any) -> Iterator[Tensor]:
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, (list, tuple)):
        for part in out:
            yield from _tensors(part)


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of their storages, each once."""
    return sum({s._cdata: s.nbytes() for s in (tensor.untyped_storage() for tensor in tensors)}.values())


def module_tensors(module: torch.nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return [*module.parameters(), *module.buffers()]
