"""Keeping what the frozen LM makes of each text: computed once, reused every epoch and for every feature set.

Keyed by the token ids themselves. Valid while nothing changes the text stream: no LoRA on the LM, no augmentation of the
text. Whoever holds a cache must see to that; :class:`TextCache` cannot know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from deepmlf_llm.backbones.interface import Decoder
from deepmlf_llm.backbones.stream import TextStream, read_text

BATCH_TOKENS = 2048


class TextCache:
    """Text streams by token ids, in memory.

    Args:
        decoder: the frozen LM.
        depth: layers of it that are kept (None: all, and only the last token's state after the final norm).
        storage_dtype: of what is kept; None: the LM's own.
    """

    def __init__(self, decoder: Decoder, depth: int | None = None, storage_dtype: torch.dtype | None = None) -> None:
        self.decoder = decoder
        self.depth = depth
        self.storage_dtype = storage_dtype
        self._entries: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for entry in self._entries.values() for t in entry)

    def read(self, input_ids: Tensor, mask: Tensor) -> TextStream:
        """The batch's text stream, computed only for texts not met before.

        Args:
            input_ids: left-padded [b x l].
            mask: 1 where a token is real [b x l].
        """
        rows = texts_of(input_ids, mask)
        self.add(rows)
        return self._assemble(rows, input_ids)

    def add(self, texts: Iterable[Sequence[int]], progress: Callable[[int], Any] | None = None) -> None:
        """Computes what is missing, in batches of like length; ``progress`` hears how many texts a batch held."""
        missing = sorted({tuple(text) for text in texts} - self._entries.keys(), key=len)
        while missing:
            count = max(1, BATCH_TOKENS // len(missing[-1]))
            batch, missing = missing[-count:], missing[:-count]
            self._compute(batch)
            if progress is not None:
                progress(len(batch))

    @torch.no_grad()
    def _compute(self, texts: list[tuple[int, ...]]) -> None:
        device = self.decoder.embeddings.weight.device
        length = max(map(len, texts))
        input_ids = torch.zeros(len(texts), length, dtype=torch.long, device=device)
        mask = torch.zeros_like(input_ids)
        for row, text in enumerate(texts):
            input_ids[row, length - len(text) :] = torch.tensor(text, device=device)
            mask[row, length - len(text) :] = 1
        stream = read_text(self.decoder, self.decoder.embeddings(input_ids), mask, self.depth)
        stacked = torch.stack([torch.stack(pair) for pair in stream.keys_values])  # [layers x 2 x b x h x l x e]
        stacked = stacked if self.storage_dtype is None else stacked.to(self.storage_dtype)
        for row, text in enumerate(texts):
            states = stream.states[row, -len(text) :].clone()
            self._entries[text] = (stacked[:, :, row, :, length - len(text) :].clone(), states)

    def _assemble(self, rows: list[tuple[int, ...]], input_ids: Tensor) -> TextStream:
        batch, length = input_ids.shape
        entries = [self._entries[row] for row in rows]
        layers, two, heads, _, width = entries[0][0].shape
        dtype = entries[0][1].dtype
        keys_values = torch.zeros(layers, two, batch, heads, length, width, dtype=dtype, device=input_ids.device)
        kept = 1 if self.depth is None else length
        states = torch.zeros(batch, kept, entries[0][1].shape[-1], dtype=dtype, device=input_ids.device)
        for row, (kv, state) in enumerate(entries):
            keys_values[:, :, row, :, length - kv.shape[3] :] = kv
            states[row, kept - state.shape[0] :] = state
        return TextStream([(layer[0], layer[1]) for layer in keys_values], states)


def texts_of(input_ids: Tensor, mask: Tensor) -> list[tuple[int, ...]]:
    """The real token ids of each row."""
    return [
        tuple(token for token, real in zip(row, keep, strict=True) if real)
        for row, keep in zip(input_ids.tolist(), mask.tolist(), strict=True)
    ]
