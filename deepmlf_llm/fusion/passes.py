"""Three equal ways through the decoder: ``[text ; fusion tokens]`` in, their final states out.

Rows are ``[pad .. text .. fusion]``: fusion tokens are always the last n positions, the last real text token is at
``-n - 1``, positions follow the mask. Three passes give the same numbers (tests hold them to tolerance);
:func:`choose_pass` says which one an adapter, a kernel and a cache ask for:

- :class:`Whole`: everything through the decoder at once, MM Blocks in its hooks; without padding where the attention
  kernel takes rows of different length (``attn_implementation="varlen"``, flash-attn). For LoRA on the LM, and for such
  a kernel where MM Blocks change the text, as long as no text is kept;
- :class:`TextOnce` (``ffw_scope`` fusion or none, fusion tokens query): the text alone without a graph, then the fusion
  tokens on its keys and values;
- :class:`Split` (``ffw_scope="joint"``, or the text queries): the same below the first MM Block, then text and fusion
  tokens together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from deepmlf_llm.backbones import (
    PACKING,
    Decoder,
    PackedRows,
    PrefixCache,
    TextStream,
    read_text,
    run_layers,
    run_packed,
)
from deepmlf_llm.backbones.text_cache import TextCache
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.fusion.hooks import FusionState
from deepmlf_llm.fusion.token_cache import TokenCache
from deepmlf_llm.modules import seqaug


@dataclass(frozen=True)
class States:
    """Final-norm states: fusion tokens [b x n x d], last text token [b x d], all text [b x l x d] where computed."""

    tokens: Tensor
    last_text: Tensor
    text: Tensor | None

    @classmethod
    def of_rows(cls, hidden: Tensor, n: int) -> States:
        """From whole rows [b x (l + n) x d]."""
        return cls(hidden[:, -n:], hidden[:, -n - 1], hidden[:, :-n])


@dataclass(frozen=True)
class Text:
    """The text of a batch: its embeddings, or what the frozen LM makes of them.

    Args:
        decoder: the frozen LM.
        config: of the adapter.
        input_ids, mask: left-padded [b x l].
        cache: text streams that are kept, if any.
        augmented: the text changes from pass to pass (in training, with SeqAug or noise on it).
    """

    decoder: Decoder
    config: DeepMLFConfig
    input_ids: Tensor
    mask: Tensor
    cache: TextCache | None
    augmented: bool

    def embeddings(self) -> Tensor:
        """[b x l x d]"""
        embeddings: Tensor = self.decoder.embeddings(self.input_ids)
        if self.augmented:
            aug = self.config.seqaug
            embeddings = seqaug(embeddings, self.mask, aug.p_apply, aug.p_feat)
            embeddings = torch.nn.functional.dropout(embeddings, aug.embedding_dropout)
            embeddings = embeddings + aug.embedding_noise * torch.randn_like(embeddings)
        return embeddings

    def stream(self, depth: int | None) -> TextStream:
        """Through the layers below ``depth`` (None: all), without a graph."""
        # An adapter of another depth may have become active since the cache was made.
        if self.cache is not None and self.cache.depth == depth and not self.augmented:
            return self.cache.read(self.input_ids, self.mask)
        return read_text(self.decoder, self.embeddings(), self.mask, depth)


@dataclass(frozen=True)
class PassInput:
    """What enters the decoder.

    Args:
        text: of the batch.
        tokens: fusion tokens [b x n x d].
        mask: 1 where a position of ``[text ; fusion tokens]`` is real [b x (l + n)].
        state: for the MM Blocks.
    """

    text: Text
    tokens: Tensor
    mask: Tensor
    state: FusionState


class Pass(Protocol):
    """One of the equal ways through the decoder."""

    def __call__(self, given: PassInput) -> States: ...


@dataclass(frozen=True)
class Whole:
    """Text and fusion tokens through all layers at once.

    Args:
        decoder: the LM.
        packed: its attention kernel takes rows without padding.
    """

    decoder: Decoder
    packed: bool

    def __call__(self, given: PassInput) -> States:
        inputs = torch.cat([given.text.embeddings(), given.tokens], dim=1)
        state = given.state
        if self.packed:
            rows = PackedRows.of(given.mask)
            state = replace(state, rows=rows)
            hidden = run_packed(self.decoder, inputs, given.mask, rows, fusion_state=state)
        else:
            hidden = run_layers(self.decoder, inputs, given.mask, fusion_state=state)
        return States.of_rows(hidden, state.num_tokens)


@dataclass(frozen=True)
class TextOnce:
    """All of the text alone, then the fusion tokens on its keys and values.

    Args:
        decoder: the LM.
        kept: fusion tokens below the first MM Block, if any are kept.
    """

    decoder: Decoder
    kept: TokenCache | None

    def __call__(self, given: PassInput) -> States:
        stream = given.text.stream(None)
        prefix = PrefixCache(stream.keys_values, given.text.input_ids.shape[1])
        tokens = _below_first_block(self, given, stream, prefix)
        return States(_from_first_block(self.decoder, given, tokens, prefix), stream.states[:, 0], None)


@dataclass(frozen=True)
class Split:
    """Below the first MM Block as :class:`TextOnce`, then text and fusion tokens together, where MM Blocks change both.

    Args:
        decoder, kept: as there.
    """

    decoder: Decoder
    kept: TokenCache | None

    def __call__(self, given: PassInput) -> States:
        stream = given.text.stream(given.state.first + 1)
        prefix = PrefixCache(stream.keys_values, given.text.input_ids.shape[1])
        tokens = _below_first_block(self, given, stream, prefix)
        hidden = _from_first_block(self.decoder, given, torch.cat([stream.states, tokens], dim=1))
        return States.of_rows(hidden, given.state.num_tokens)


def _below_first_block(way: TextOnce | Split, given: PassInput, stream: TextStream, prefix: PrefixCache) -> Tensor:
    """The fusion tokens after the layer of the first MM Block [b x n x d], which they have not met yet."""
    first = given.state.first
    below = partial(run_layers, way.decoder, given.tokens, given.mask, last=first + 1, cache=prefix)
    if stream.texts is None or way.kept is None or torch.is_grad_enabled():
        return below()
    return way.kept.read(first, given.tokens[0], stream.texts, below)


def _from_first_block(decoder: Decoder, given: PassInput, hidden: Tensor, cache: PrefixCache | None = None) -> Tensor:
    """Through the first MM Block and all that follows. It runs in no hook: where it changes the text, it reads it, and
    no layer has that in one piece with the tokens yet."""
    first = given.state.first
    fused = given.state.fuse(first, hidden)
    return run_layers(decoder, fused, given.mask, first=first + 1, cache=cache, fusion_state=given.state.above(first))


def choose_pass(
    decoder: Decoder, config: DeepMLFConfig, keeps_text: bool, kept: TokenCache | None, text_once: bool = True
) -> Pass:
    """The pass for an adapter and the LM's attention kernel.

    Args:
        decoder: the LM.
        config: of the adapter.
        keeps_text: there is a text cache. Text that is read once, or kept, saves more than padding costs.
        kept: see :class:`TextOnce`.
        text_once: False: always :class:`Whole`.
    """
    packed = decoder.lm.config._attn_implementation in PACKING
    changed = config.blocks_change_text
    if config.has_lm_lora or not text_once or (packed and changed and not keeps_text):
        return Whole(decoder, packed)
    return (Split if changed else TextOnce)(decoder, kept)
