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

    Its tensors may be parts of those of the batch that it was read in.

    Args:
        keys_values: [layers x 2 x h x l x e], in the storage dtype.
        scales: of int8 storage, per layer, head and token [layers x 2 x h x l] (fp32); else None.
        states: [l x d], or the last token's after each noted layer and the last [(r + 1) x d].
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
    stored, scales = narrowed(keys_values, storage)
    copied = stored.to("cpu", copy=stored is keys_values)
    return Entry(copied, None if scales is None else scales.cpu(), states.to("cpu", copy=True))


def narrowed(values: Tensor, storage: str | None) -> tuple[Tensor, Tensor | None]:
    """Keys or values [.. x e] in their storage dtype, and the scales of int8 [..]."""
    if storage != "int8":
        return (values if storage is None else values.to(getattr(torch, storage))), None
    scales = values.float().abs().amax(dim=-1).clamp(min=1e-12) / 127
    return (values.float() / scales[..., None]).round().to(torch.int8), scales


class TextRecord:
    """Keys and values of a batch of texts, written down layer by layer as they are to be kept.

    Args:
        lowest, layers: the layers from ``lowest`` on are kept, ``layers`` of them.
        storage: see :func:`narrowed`.
    """

    def __init__(self, lowest: int, layers: int, storage: str | None) -> None:
        self.lowest, self.layers, self.storage = lowest, layers, storage
        self._written: tuple[Tensor, Tensor | None] | None = None
        self.states = torch.empty(0)  # as for :meth:`entries`, where a pass puts them here

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Those of one LM layer [b x h x l x e]."""
        if not self.lowest <= layer < self.lowest + self.layers:
            return
        for part, given in enumerate((keys, values)):
            stored, scales = narrowed(given, self.storage)
            if self._written is None:  # [layers x 2 x b x h x l x e], and int8's scales
                room = stored.new_empty(self.layers, 2, *stored.shape)
                self._written = room, None if scales is None else scales.new_empty(self.layers, 2, *scales.shape)
            self._written[0][layer - self.lowest, part] = stored
            if scales is not None and self._written[1] is not None:
                self._written[1][layer - self.lowest, part] = scales

    def entries(
        self, lengths: Sequence[int], states: Tensor, device: torch.device, of_ends: bool = False
    ) -> list[Entry]:
        """One of each text, left-padded in the batch: parts of what lies on ``device`` for all of them, padding left
        out. Together they hold as much memory as they say (:attr:`Entry.nbytes`).

        Args:
            lengths: of the texts.
            states: [b x l x d], or [b x (r + 1) x d].
            device: where they are kept.
            of_ends: states are of last tokens alone, the second form.
        """
        states = states.to(device, copy=True)
        nothing = states.new_empty(0, 2, len(lengths), 1, max(lengths), 1)  # where states alone are kept
        values, scales = self._written or (nothing, None)
        values, scales = values.to(device), None if scales is None else scales.to(device)
        ends = states.unbind() if of_ends else _without_padding(states.unbind(), lengths, 0)
        kept = _without_padding(values.unbind(2), lengths, 3)
        scaled: Sequence[Tensor | None] = [None] * len(lengths)
        if scales is not None:
            scaled = _without_padding(scales.unbind(2), lengths, 3)
        return [Entry(*parts) for parts in zip(kept, scaled, ends, strict=True)]


def _without_padding(rows: Sequence[Tensor], lengths: Sequence[int], dim: int) -> Sequence[Tensor]:
    """The rows of a left-padded batch, one after the other along the tokens of one tensor: no part keeps padding.

    Args:
        rows: of one size, their tokens along ``dim``.
        lengths: of their texts.
    """
    if min(lengths) == max(lengths):
        return rows
    real = [row.narrow(dim, row.shape[dim] - n, n) for row, n in zip(rows, lengths, strict=True)]
    return torch.split(torch.cat(real, dim), list(lengths), dim)


def unpacked(entry: Entry) -> Tensor:
    """Keys and values as they go into the batch (a cast, if any, happens in the copy)."""
    return entry.keys_values if entry.scales is None else entry.keys_values * entry.scales[..., None]


def fetched(device: torch.device, *tensors: Tensor) -> list[Tensor]:
    """Tensors on ``device``. Out of pinned memory a GPU fetches them while it still computes the step before: on a
    stream of their own, which waits for nothing that was asked of it so far."""
    if device.type != "cuda" or tensors[0].device == device:
        return [x.to(device) for x in tensors]
    fetching, computing = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(fetching):
        moved = [x.to(device, non_blocking=True) for x in tensors]
    computing.wait_stream(fetching)
    for x in moved:
        x.record_stream(computing)
    return moved


def free_on_gpu(device: torch.device) -> int:
    """Bytes; 0 on any other device."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0


Text = tuple[int, ...]  # token ids


class MemoryStore:
    """Entries in a dictionary, wherever their tensors lie."""

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
