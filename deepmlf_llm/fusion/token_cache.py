"""Fusion tokens below the first MM Block, kept by text.

Up to their first cross-attention the fusion tokens have read the text and nothing else. Where a trained model meets a
text again, with other audio or vision, its lowest layers have nothing left to compute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class _Kept:
    """What was computed from the same learned tokens, in the same way.

    Args:
        layer: LM layer after which.
        autocast: on or off.
        learned: the fusion tokens as they enter the LM [n x d].
        reads: True where a fusion token may read another [n x n]; None: as the LM has it.
        states: token ids of a text -> [n x d].
    """

    layer: int
    autocast: bool
    learned: Tensor
    reads: Tensor | None
    states: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def fits(self, layer: int, autocast: bool, learned: Tensor, reads: Tensor | None) -> bool:
        same_kind = (self.learned.device, self.learned.dtype) == (learned.device, learned.dtype)
        if (self.layer, self.autocast) != (layer, autocast) or not same_kind:
            return False
        if self.reads is None or reads is None:
            return self.reads is reads and torch.equal(self.learned, learned)
        return torch.equal(self.reads, reads) and torch.equal(self.learned, learned)


class TokenCache:
    """States of the fusion tokens after one LM layer, by the text's token ids. For passes without a graph.

    What is kept goes with the layer, with the learned tokens that it was computed from, and with autocast: once another
    adapter is active, or they change or go to another device, all of it is dropped. A pass works to its end on what it
    found at its beginning, whatever other threads drop or replace meanwhile.
    """

    def __init__(self) -> None:
        self._kept: _Kept | None = None
        self._lm: dict[str, Any] | None = None

    def follow(self, lm: dict[str, Any]) -> None:
        """Drops what another LM has made, or this one before its weights changed.

        Args:
            lm: what identifies it (:attr:`~deepmlf_llm.backbones.text_cache.TextCache.key`).
        """
        if lm is not self._lm and lm != self._lm:
            self.clear()
        self._lm = lm

    def __len__(self) -> int:
        return len(self.states)

    @property
    def states(self) -> dict[tuple[int, ...], Tensor]:
        """Token ids of a text -> states [n x d]."""
        kept = self._kept
        return {} if kept is None else kept.states

    @property
    def nbytes(self) -> int:
        kept = self._kept
        return 0 if kept is None else len(kept.states) * kept.learned.nbytes

    def clear(self) -> None:
        self._kept = None

    def read(
        self,
        layer: int,
        learned: Tensor,
        texts: Sequence[tuple[int, ...]],
        compute: Callable[[], Tensor],
        reads: Tensor | None = None,
    ) -> Tensor:
        """States of a batch [b x n x d], computed where one of its texts is new.

        Args:
            layer: LM layer after which they are wanted.
            learned: the fusion tokens as they enter the LM [n x d].
            texts: token ids of each row.
            compute: makes the states of all rows.
            reads: which fusion tokens read which [n x n], where a mask keeps them apart.
        """
        autocast = torch.is_autocast_enabled(learned.device.type)
        kept = self._kept
        if kept is None or not kept.fits(layer, autocast, learned, reads):
            kept = self._kept = _Kept(layer, autocast, learned.clone(), reads)
        found = [kept.states.get(text) for text in texts]
        known = [state for state in found if state is not None]
        if len(known) == len(found):
            return torch.stack(known)
        states = compute()
        kept.states.update(zip(texts, states.clone(), strict=True))
        return states
