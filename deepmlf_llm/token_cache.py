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

    What is kept goes with the layer and with the learned tokens that it was computed from: once another adapter is
    active, or they move, all of it is dropped.
    """

    def __init__(self) -> None:
        self._layer: int | None = None
        self._learned: Tensor | None = None
        self._kept: dict[tuple[int, ...], Tensor] = {}

    def __len__(self) -> int:
        return len(self._kept)

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
        if self._learned is None or self._layer != layer or not torch.equal(self._learned, learned):
            self._layer, self._learned, self._kept = layer, learned.clone(), {}
        if all(text in self._kept for text in texts):
            return torch.stack([self._kept[text] for text in texts])
        states = compute()
        self._kept.update(zip(texts, states.clone(), strict=True))
        return states
