"""What is kept of a text, and a store in host memory, which any number of threads may use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from deepmlf_llm.locks import Lock

STORAGE = ("float32", "bfloat16", "float16", "int8")


@dataclass
class Entry:
    """One text: notation as in :class:`~deepmlf_llm.backbones.stream.TextStream`.

    Args:
        keys_values: [layers x 2 x h x l x e], in the storage dtype.
        scales: of int8 storage, per layer, head and token [layers x 2 x h x l] (fp32); else None.
        states: [l x d], or the last token's [1 x d].
    """

    keys_values: Tensor
    scales: Tensor | None
    states: Tensor

    def tensors(self) -> list[Tensor]:
        return [t for t in (self.keys_values, self.scales, self.states) if t is not None]

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors())


def pack(keys_values: Tensor, states: Tensor, storage: str | None) -> Entry:
    """Keys and values in their storage dtype, in host memory; int8 rounds symmetrically, one scale per layer, head and
    token."""
    states = states.to("cpu", copy=True)
    if storage != "int8":
        dtype = keys_values.dtype if storage is None else getattr(torch, storage)
        return Entry(keys_values.to("cpu", dtype, copy=True), None, states)
    scales = keys_values.float().abs().amax(dim=-1).clamp(min=1e-12) / 127
    return Entry((keys_values.float() / scales[..., None]).round().to("cpu", torch.int8), scales.cpu(), states)


def unpacked(entry: Entry) -> Tensor:
    """Keys and values as they go into the batch (a cast, if any, happens in the copy)."""
    return entry.keys_values if entry.scales is None else entry.keys_values * entry.scales[..., None]


Text = tuple[int, ...]  # token ids


class MemoryStore:
    """Entries in a dictionary, in host memory: an accelerator's is for the model."""

    kind = "memory"
    where = "in memory"

    def __init__(self) -> None:
        self._lock = Lock()
        self._entries: dict[Text, Entry] = {}
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, text: Text) -> bool:
        return text in self._entries

    def missing(self, texts: set[Text]) -> set[Text]:
        return {text for text in texts if text not in self._entries}

    def found(self, texts: Iterable[Text]) -> dict[Text, Entry]:
        """Those of ``texts`` that are kept."""
        entries = self._entries
        looked_up = {text: entries.get(text) for text in texts}
        return {text: entry for text, entry in looked_up.items() if entry is not None}

    def __getitem__(self, text: Text) -> Entry:
        return self.found([text])[text]

    def put(self, entries: Sequence[tuple[Text, Entry]]) -> None:
        with self._lock:
            for text, entry in entries:
                before = self._entries.get(text)
                self.nbytes += entry.nbytes - (0 if before is None else before.nbytes)
                self._entries[text] = entry

    def clear(self) -> None:
        with self._lock:
            self._entries = {}
            self.nbytes = 0

    def free_bytes(self) -> int:
        """What this machine could still hold."""
        return int(psutil.virtual_memory().available)
