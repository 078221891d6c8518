"""How the fusion tokens come to the first MM Block, up to which they have read the text and nothing else.

- :class:`ThroughLayers` (``fusion_entry="embedding"``, the paper): behind the text's embeddings, through all LM layers
  below. Frozen tokens (``freeze_fusion_tokens``) are constants of the text there, also while the rest is trained.
- :class:`AtFirstBlock` (``fusion_entry="first_block"``): as states behind that block's LM layer. No layer below runs
  for them, and nothing of the text is read there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from deepmlf_llm.backbones import Decoder, TextStream, read_text, run_layers
from deepmlf_llm.fusion.token_cache import TokenCache

if TYPE_CHECKING:
    from deepmlf_llm.fusion.passes import PassInput


class TokenEntry(Protocol):
    """One way to the first MM Block."""

    def lowest(self, first: int) -> int:
        """The lowest layer whose kept keys and values of the text are needed; ``first``: the first MM Block's."""

    def __call__(self, given: PassInput, stream: TextStream) -> Tensor:
        """States of the fusion tokens after the LM layer of the first MM Block [b x n x d]."""


@dataclass(frozen=True)
class AtFirstBlock:
    """Learned states that join the text there."""

    def lowest(self, first: int) -> int:
        return first + 1

    def __call__(self, given: PassInput, stream: TextStream) -> Tensor:
        return given.tokens


@dataclass(frozen=True)
class ThroughLayers:
    """Learned embeddings, on the text's keys and values.

    Args:
        decoder: the frozen LM.
        kept: states of the tokens by text, if any are kept; used in passes without a graph.
        frozen: the tokens are not trained, so there is no graph below the first MM Block.
    """

    decoder: Decoder
    kept: TokenCache | None
    frozen: bool

    def lowest(self, first: int) -> int:
        """Frozen tokens that are kept need a text once: of those below, nothing is worth keeping."""
        return first + 1 if self.frozen and self.kept is not None else 0

    def __call__(self, given: PassInput, stream: TextStream) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            below = partial(self._below, given, stream)
            if stream.texts is None or self.kept is None or torch.is_grad_enabled():
                return below()
            return self.kept.read(given.state.first, given.tokens[0], stream.texts, below, given.reads)

    def _below(self, given: PassInput, stream: TextStream) -> Tensor:
        first, text = given.state.first, given.text
        if stream.lowest > 0:  # the cache keeps what is read at every step, and this is not
            with torch.autocast(given.tokens.device.type, enabled=False):  # as what is kept was read
                stream = read_text(self.decoder, text.embeddings(), text.mask, first + 1)
        prefix = stream.prefix(text.mask.shape[1])
        return run_layers(self.decoder, given.tokens, given.mask, last=first + 1, cache=prefix, reads=given.reads)


def choose_entry(decoder: Decoder, at_first_block: bool, frozen: bool, kept: TokenCache | None) -> TokenEntry:
    """See this module; the arguments are those of :class:`ThroughLayers`."""
    return AtFirstBlock() if at_first_block else ThroughLayers(decoder, kept, frozen)
