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

Where there is no graph and no text of a batch is kept, one pass does (``fusion/one_pass.py``).

How the tokens come to the first MM Block is the entry's (``fusion/entry.py``). Where they enter there, the first of the
three is :class:`WholeFromBlock`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

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
from deepmlf_llm.backbones.stream import RecordingCache
from deepmlf_llm.backbones.text_cache import TextCache
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.config.topology import POOLED
from deepmlf_llm.fusion.entry import TokenEntry, choose_entry
from deepmlf_llm.fusion.hooks import FusionState
from deepmlf_llm.fusion.token_cache import TokenCache
from deepmlf_llm.modules import seqaug


@dataclass(frozen=True)
class States:
    """Final-norm states: fusion tokens [b x n x d], last text token [b x d], all text [b x l x d] where computed; the
    last text token after each noted layer [b x r x d] where the text runs apart from the tokens."""

    tokens: Tensor
    last_text: Tensor
    text: Tensor | None
    earlier_text: Tensor | None = None

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

    def serving(self, depth: int | None, lowest: int = 0, notes: tuple[int, ...] = ()) -> TextCache | None:
        """The cache, where it keeps what :meth:`stream` is asked for."""
        # An adapter of another depth may have become active since the cache was made.
        serves = self.cache is not None and self.cache.serves(self.decoder, depth, lowest, notes)
        return self.cache if serves and not self.augmented else None

    def stream(self, depth: int | None, lowest: int = 0, notes: tuple[int, ...] = ()) -> TextStream:
        """Through the layers below ``depth`` (None: all, with states after ``notes`` too), without a graph; keys and
        values at least from ``lowest``."""
        if (cache := self.serving(depth, lowest, notes)) is not None:
            return cache.read(self.input_ids, self.mask)
        return read_text(self.decoder, self.embeddings(), self.mask, depth, notes)


@dataclass(frozen=True)
class PassInput:
    """What enters the decoder.

    Args:
        text: of the batch.
        tokens: fusion tokens [b x n x d].
        mask: 1 where a position of ``[text ; fusion tokens]`` is real [b x (l + n)].
        state: for the MM Blocks.
        reads: True where a fusion token may read another [n x n]; None: as the LM has it.
        record: gets each LM layer's keys and values of whole rows that are padded, where somebody wants them.
    """

    text: Text
    tokens: Tensor
    mask: Tensor
    state: FusionState
    reads: Tensor | None = None
    record: Callable[[int, Tensor, Tensor], None] | None = None

    def recording(self) -> dict[str, RecordingCache]:
        """An argument of :func:`run_layers`, where something is to be recorded."""
        return {} if self.record is None else {"cache": RecordingCache(self.record)}


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
            more: dict[str, Any] = {"reads": given.reads, "fusion_state": state, **given.recording()}
            hidden = run_layers(self.decoder, inputs, given.mask, **more)
        return States.of_rows(hidden, state.num_tokens)


@dataclass(frozen=True)
class WholeFromBlock:
    """Text and fusion tokens at once from the first MM Block on, where the tokens enter; below it the text alone.

    Args:
        decoder, packed: as there.
    """

    decoder: Decoder
    packed: bool

    def __call__(self, given: PassInput) -> States:
        first, state = given.state.first, given.state
        text = self._run(given.text.embeddings(), given.text.mask, last=first + 1, **given.recording())
        fused = state.fuse(first, torch.cat([text, given.tokens], dim=1))
        above = {"first": first + 1, **given.recording()}
        hidden = self._run(fused, given.mask, state.above(first), given.reads, **above)
        return States.of_rows(hidden, state.num_tokens)

    def _run(
        self,
        hidden: Tensor,
        mask: Tensor,
        state: FusionState | None = None,
        reads: Tensor | None = None,
        **span: Any,
    ) -> Tensor:
        if not self.packed:
            return run_layers(self.decoder, hidden, mask, reads=reads, fusion_state=state, **span)
        rows = PackedRows.of(mask)
        packed = None if state is None else replace(state, rows=rows)
        return run_packed(self.decoder, hidden, mask, rows, fusion_state=packed, **span)


@dataclass(frozen=True)
class TextOnce:
    """All of the text alone, then the fusion tokens on its keys and values.

    Args:
        decoder: the LM.
        entry: of the fusion tokens.
    """

    decoder: Decoder
    entry: TokenEntry

    def reads(self, state: FusionState) -> tuple[int | None, int, tuple[int, ...]]:
        """What it wants of the text: depth, lowest layer and notes, as of :meth:`Text.stream`."""
        return None, self.entry.lowest(state.first), state.notes

    def __call__(self, given: PassInput) -> States:
        stream = given.text.stream(*self.reads(given.state))
        tokens = self.entry(given, stream)
        prefix = stream.prefix(given.text.input_ids.shape[1])
        tokens = _from_first_block(self.decoder, given, tokens, prefix)
        return States(tokens, stream.states[:, -1], None, stream.states[:, :-1])


@dataclass(frozen=True)
class Split:
    """Below the first MM Block as :class:`TextOnce`, then text and fusion tokens together, where MM Blocks change both.

    Args:
        decoder, entry: as there.
    """

    decoder: Decoder
    entry: TokenEntry

    def reads(self, state: FusionState) -> tuple[int | None, int, tuple[int, ...]]:
        """As there."""
        return state.first + 1, self.entry.lowest(state.first), ()

    def __call__(self, given: PassInput) -> States:
        stream = given.text.stream(*self.reads(given.state))
        tokens = self.entry(given, stream)
        hidden = _from_first_block(self.decoder, given, torch.cat([stream.states, tokens], dim=1))
        return States.of_rows(hidden, given.state.num_tokens)


def _from_first_block(decoder: Decoder, given: PassInput, hidden: Tensor, cache: PrefixCache | None = None) -> Tensor:
    """Through the first MM Block and all that follows. It runs in no hook: where it changes the text, it reads it, and
    no layer has that in one piece with the tokens yet."""
    first = given.state.first
    fused, above = given.state.fuse(first, hidden), given.state.above(first)
    return run_layers(decoder, fused, given.mask, first=first + 1, cache=cache, reads=given.reads, fusion_state=above)


def choose_pass(
    decoder: Decoder, config: DeepMLFConfig, keeps_text: bool, kept: TokenCache | None, text_once: bool = True
) -> Pass:
    """The pass for an adapter and the LM's attention kernel.

    Args:
        decoder: the LM.
        config: of the adapter.
        keeps_text: there is a text cache. Text that is read once, or kept, saves more than padding costs.
        kept: fusion tokens below the first MM Block, if any are kept.
        text_once: False: always :class:`Whole` (or :class:`WholeFromBlock`).
    """
    packed, changed = takes_packed_rows(decoder, config), config.blocks_change_text
    if config.has_lm_lora or not text_once or (packed and changed and not keeps_text):
        return whole_pass(decoder, config, packed)
    at_first_block = config.fusion_entry == "first_block"
    entry = choose_entry(decoder, at_first_block, config.freeze_fusion_tokens, kept)
    return (Split if changed else TextOnce)(decoder, entry)


def takes_packed_rows(decoder: Decoder, config: DeepMLFConfig) -> bool:
    """Packed rows go without a mask, so tokens that a mask keeps apart stay padded."""
    return decoder.lm.config._attn_implementation in PACKING and config.token_topology == POOLED


def whole_pass(decoder: Decoder, config: DeepMLFConfig, packed: bool) -> Whole | WholeFromBlock:
    """Text and fusion tokens together, from where these enter."""
    return (WholeFromBlock if config.fusion_entry == "first_block" else Whole)(decoder, packed)
