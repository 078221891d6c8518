"""One forward pass of DeepMLF over a decoder: ``[text ; fusion tokens]`` in, polarity and losses out. Needs no PEFT.

Rows are ``[pad .. text .. fusion]``: fusion tokens are always the last n positions, the last real text token is at
``-n - 1``, positions follow the mask. Three passes give the same numbers (tests hold them to tolerance);
:func:`choose_pass` says which one an adapter, a kernel and a cache ask for:

- :class:`Whole`: everything through the decoder at once, MM Blocks in its hooks; without padding where the attention
  kernel takes rows of different length (``attn_implementation="varlen"``, flash-attn). For LoRA on the LM, and for such
  a kernel in joint scope, as long as no text is kept;
- :class:`TextOnce` (``ffw_scope="fusion"``): the text alone without a graph, then the fusion tokens on its keys and
  values;
- :class:`Split` (``ffw_scope="joint"``): the same below the first MM Block, then text and fusion tokens together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.utils import ModelOutput

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
from deepmlf_llm.errors import ConfigError, suggest
from deepmlf_llm.fusion.hooks import FusionState, Injection
from deepmlf_llm.fusion.objective import combine, loss_terms, next_token_sum
from deepmlf_llm.fusion.token_cache import TokenCache
from deepmlf_llm.modules import AVContext, FusionStack, seqaug


@dataclass
class DeepMLFOutput(ModelOutput):
    """What the model says, in fp32 (fp64 on a base in fp64); shapes for one output per utterance (else a last dimension
    more).

    Args:
        loss: scalar, with labels only.
        losses: unweighted terms by name: task, fusion, av, text and (gamma > 0) lm.
        polarity: the prediction [b].
        fusion_polarity: mean over the fusion tokens' own heads [b].
        text_polarity: from the last text token [b].
        av_polarity: from the audiovisual context [b]; means nothing for a row without any.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    polarity: Tensor | None = None
    fusion_polarity: Tensor | None = None
    text_polarity: Tensor | None = None
    av_polarity: Tensor | None = None


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
    """Below the first MM Block as :class:`TextOnce`, then text and fusion tokens together: a joint FFW changes both.

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
    """Through the first MM Block and all that follows. It runs in no hook: a joint FFW reads the text, which no layer
    has in one piece with the tokens yet."""
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
    joint = config.ffw_scope == "joint"
    if config.has_lm_lora or not text_once or (packed and joint and not keeps_text):
        return Whole(decoder, packed)
    return (Split if joint else TextOnce)(decoder, kept)


def left_padded(input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows with their padding moved to the left, real tokens in order. No branch: the same steps for every batch."""
    order = mask.long().argsort(dim=1, stable=True)
    return input_ids.gather(1, order), mask.gather(1, order)


class FusedDecoder:
    """Runs a :class:`FusionStack` on a decoder. Owns neither.

    Args:
        decoder: the frozen LM.
        text_once: allow the two paths that compute the text apart (False: always ``whole``).
    """

    def __init__(self, decoder: Decoder, text_once: bool = True) -> None:
        self.decoder = decoder
        self.injection = Injection(decoder)
        self.text_once = text_once
        self.cache: TextCache | None = None
        self.token_cache: TokenCache | None = None

    def forward(
        self,
        stack: FusionStack,
        config: DeepMLFConfig,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        loss_counts: Mapping[str, Tensor] | None = None,
        **features: Tensor | None,
    ) -> DeepMLFOutput:
        """See :meth:`deepmlf_llm.model.DeepMLFModel.forward`."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        input_ids, mask = left_padded(input_ids, mask)
        inputs = self._features(config, features, len(input_ids), stack)
        context, key_values = stack.encode(inputs)
        state = FusionState(stack.blocks, key_values, context.mask, stack.num_tokens)
        tokens = stack.fusion_tokens(len(input_ids)).to(self.decoder.embeddings.weight.dtype)
        cache, kept = self.cache, self.token_cache  # another thread may exchange them meanwhile
        augmented = stack.training and config.seqaug.changes_text
        text = Text(self.decoder, config, input_ids, mask, cache, augmented)
        full_mask = torch.cat([mask, mask.new_ones(len(mask), stack.num_tokens)], dim=1)
        run = choose_pass(self.decoder, config, cache is not None, kept, self.text_once)
        states = run(PassInput(text, tokens, full_mask, state))
        return self._output(stack, config, states, context, input_ids, mask, labels, loss_counts)

    def _features(
        self, config: DeepMLFConfig, given: Mapping[str, Tensor | None], batch: int, stack: FusionStack
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Name -> (frames [b x t x d_m], mask [b x t]) for every modality of the config; not given means absent."""
        names = [*config.modalities, *(f"{name}_mask" for name in config.modalities)]
        for key in given:
            if key not in names:
                raise ConfigError(f"forward got {key!r}{suggest(key, names)}: expected {', '.join(names)}")
        device = stack.heads.text.weight.device
        features = {}
        for name, modality in config.modalities.items():
            frames, mask = given.get(name), given.get(f"{name}_mask")
            if frames is None:
                frames = torch.zeros(batch, 1, modality.dim, device=device)
                mask = torch.zeros(batch, 1, dtype=torch.bool, device=device)
            elif frames.dim() != 3 or frames.shape[0] != batch or frames.shape[2] != modality.dim:
                raise ConfigError(f"{name}: got shape {list(frames.shape)}, expected [{batch}, frames, {modality.dim}]")
            if mask is None:
                mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
            elif mask.shape != frames.shape[:2]:
                raise ConfigError(f"{name}_mask: got shape {list(mask.shape)}, expected {list(frames.shape[:2])}")
            mask = mask.bool()
            if stack.training:
                frames = seqaug(frames, mask, config.seqaug.av_p_apply, config.seqaug.av_p_feat)
            features[name] = (frames.to(stack.heads.text.weight.dtype), mask)
        return features

    def text_depth(self, config: DeepMLFConfig, stack: FusionStack) -> int | None:
        """Layers whose text never sees a fusion token; None: all of them."""
        return None if config.ffw_scope == "fusion" else stack.layers[0] + 1

    def _output(
        self,
        stack: FusionStack,
        config: DeepMLFConfig,
        states: States,
        context: AVContext,
        input_ids: Tensor,
        mask: Tensor,
        labels: Tensor | None,
        loss_counts: Mapping[str, Tensor] | None,
    ) -> DeepMLFOutput:
        predictions = stack.heads(states.tokens, states.last_text, context.mean())
        output = DeepMLFOutput(
            polarity=_per_utterance(predictions.task),
            fusion_polarity=_per_utterance(predictions.fusion.mean(dim=1)),
            text_polarity=_per_utterance(predictions.text),
            av_polarity=_per_utterance(predictions.av),
        )
        if labels is not None:
            next_token = None
            if config.objective.gamma > 0 and states.text is not None:
                next_token = partial(next_token_sum, self.decoder.logits, states.text, input_ids, mask)
            terms = loss_terms(config.objective, predictions, labels, mask, context.mask.any(dim=1), next_token)
            output.loss, output.losses = combine(terms, loss_counts)
        return output


def _per_utterance(x: Tensor) -> Any:
    """[b x 1] -> [b]; [b x o] stays."""
    return x.squeeze(-1) if x.shape[-1] == 1 else x
