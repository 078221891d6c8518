"""Fusion tokens below the first MM Block, kept by text.

Up to their first cross-attention the fusion tokens have read the text and nothing else. Where a trained model meets a
text again, with other audio or vision, its lowest layers have nothing left to compute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class TokenCache:
    """States of the fusion tokens after one LM layer, by the text's token ids. For passes without a graph.

    What is kept goes with the layer, with the learned tokens that it was computed from, and with autocast: once another
    adapter is active, or they change or go to another device, all of it is dropped.
    """

    def __init__(self) -> None:
        self._layer: int | None = None
        self._autocast = False
        self._learned = torch.empty(0)
        self._kept: dict[tuple[int, ...], Tensor] = {}

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        return len(self._kept) * self._learned.nbytes

    def clear(self) -> None:
        self._kept.clear()

    def read(
        self, layer: int, learned: Tensor, texts: Sequence[tuple[int, ...]], compute: Callable[[], Tensor]
    ) -> Tensor:
        """States of a batch [b x n x d], computed where one of its texts is new.

        Args:
            layer: LM layer after which they are wanted.
            learned: the fusion tokens as they enter the LM [n x d].
            texts: token ids of each row.
            compute: makes the states of all rows.
        """
        autocast = torch.is_autocast_enabled(learned.device.type)
        if (self._layer, self._autocast) != (layer, autocast) or not _same(self._learned, learned):
            self._layer, self._autocast, self._learned, self._kept = layer, autocast, learned.clone(), {}
        if all(text in self._kept for text in texts):
            return torch.stack([self._kept[text] for text in texts])
        states = compute()
        self._kept.update(zip(texts, states.clone(), strict=True))
        return states


def _same(a: Tensor, b: Tensor) -> bool:
    return (a.device, a.dtype) == (b.device, b.dtype) and torch.equal(a, b)
