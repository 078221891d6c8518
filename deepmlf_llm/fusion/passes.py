"""One forward pass of DeepMLF over a decoder: ``[text ; fusion tokens]`` in, polarity and losses out. Needs no PEFT.

Rows are ``[pad .. text .. fusion]``: fusion tokens are always the last n positions, the last real text token is at
``-n - 1``, positions follow the mask. Three paths give the same numbers (tests hold them to tolerance):

- ``whole``: everything through the decoder at once, MM Blocks in its hooks; without padding where the attention kernel
  takes rows of different length (``attn_implementation="varlen"``, flash-attn). For LoRA on the LM, and for such a
  kernel in joint scope, as long as no text is kept;
- ``text once`` (``ffw_scope="fusion"``): the text alone without a graph, then the fusion tokens on its keys and values;
- ``split`` (``ffw_scope="joint"``): the same below the first MM Block, then text and fusion tokens together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

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


@dataclass
class _States:
    """Final-norm states: fusion tokens [b x n x d], last text token [b x d], all text [b x l x d] where computed."""

    tokens: Tensor
    last_text: Tensor
    text: Tensor | None


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
        states = self._states(stack, config, state, input_ids, mask)
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

    def _embed_text(self, config: DeepMLFConfig, input_ids: Tensor, mask: Tensor, training: bool) -> Tensor:
        embeddings = self.decoder.embeddings(input_ids)
        if training and config.seqaug.changes_text:
            aug = config.seqaug
            embeddings = seqaug(embeddings, mask, aug.p_apply, aug.p_feat)
            embeddings = torch.nn.functional.dropout(embeddings, aug.embedding_dropout)
            embeddings = embeddings + aug.embedding_noise * torch.randn_like(embeddings)
        return embeddings

    def text_depth(self, config: DeepMLFConfig, stack: FusionStack) -> int | None:
        """Layers whose text never sees a fusion token; None: all of them."""
        return None if config.ffw_scope == "fusion" else stack.layers[0] + 1

    def _states(
        self, stack: FusionStack, config: DeepMLFConfig, state: FusionState, input_ids: Tensor, mask: Tensor
    ) -> _States:
        tokens = stack.fusion_tokens(len(input_ids)).to(self.decoder.embeddings.weight.dtype)
        full_mask = torch.cat([mask, mask.new_ones(len(mask), stack.num_tokens)], dim=1)
        packed = self.decoder.lm.config._attn_implementation in PACKING
        # Text that is read once, or kept, saves more than padding costs.
        packing_first = packed and config.ffw_scope == "joint" and self.cache is None
        if packing_first or config.has_lm_lora or not self.text_once:
            inputs = torch.cat([self._embed_text(config, input_ids, mask, stack.training), tokens], dim=1)
            if not packed:
                return self._split(run_layers(self.decoder, inputs, full_mask, fusion_state=state), stack)
            state.rows = PackedRows.of(full_mask)
            return self._split(run_packed(self.decoder, inputs, full_mask, state.rows, fusion_state=state), stack)
        depth, first = self.text_depth(config, stack), stack.layers[0]
        stream = self._text_stream(stack, config, input_ids, mask, depth)
        prefix = PrefixCache(stream.keys_values, input_ids.shape[1])
        below = partial(run_layers, self.decoder, tokens, full_mask, last=first + 1, cache=prefix)
        if stream.texts is not None and self.token_cache is not None and not torch.is_grad_enabled():
            tokens = self.token_cache.read(first, tokens[0], stream.texts, below)
        else:
            tokens = below()
        # The first MM Block runs in no hook here: a joint FFW reads the text beside the tokens.
        above = partial(run_layers, self.decoder, mask=full_mask, first=first + 1, fusion_state=state.above(first))
        if depth is None:
            return _States(above(state.fuse(first, tokens), cache=prefix), stream.states[:, 0], None)
        return self._split(above(state.fuse(first, torch.cat([stream.states, tokens], dim=1))), stack)

    def _split(self, hidden: Tensor, stack: FusionStack) -> _States:
        n = stack.num_tokens
        return _States(hidden[:, -n:], hidden[:, -n - 1], hidden[:, :-n])

    def _text_stream(
        self, stack: FusionStack, config: DeepMLFConfig, input_ids: Tensor, mask: Tensor, depth: int | None
    ) -> TextStream:
        changed = stack.training and config.seqaug.changes_text
        # An adapter of another depth may have become active since the cache was made.
        if self.cache is not None and self.cache.depth == depth and not changed:
            return self.cache.read(input_ids, mask)
        return read_text(self.decoder, self._embed_text(config, input_ids, mask, stack.training), mask, depth)

    def _output(
        self,
        stack: FusionStack,
        config: DeepMLFConfig,
        states: _States,
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
