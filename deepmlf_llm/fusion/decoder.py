"""One forward pass of DeepMLF over a decoder: features and ``[text ; fusion tokens]`` in, polarity and losses out.

Needs no PEFT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from deepmlf_llm.backbones import Decoder
from deepmlf_llm.backbones.text_cache import TextCache
from deepmlf_llm.config.labels import own_heads, unimodal_terms
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.errors import ConfigError, InjectionError, suggest
from deepmlf_llm.fusion.hooks import FusionState, Injection
from deepmlf_llm.fusion.layer_mix import mixed_states
from deepmlf_llm.fusion.objective import combine, loss_terms, next_token_sum
from deepmlf_llm.fusion.one_pass import in_one_pass
from deepmlf_llm.fusion.passes import PassInput, States, Text, choose_pass
from deepmlf_llm.fusion.task_loss import task_loss
from deepmlf_llm.fusion.token_cache import TokenCache
from deepmlf_llm.fusion.unimodal import Unimodal, unimodal_of
from deepmlf_llm.locks import SharedLock
from deepmlf_llm.modules import AVContext, FusionStack, seqaug
from deepmlf_llm.modules.heads import Predictions


@dataclass
class DeepMLFOutput(ModelOutput):
    """What the model says, in fp32 (fp64 on a base in fp64); shapes for one output per utterance. Of classes it says
    logits, one each: a last dimension more.

    Args:
        loss: scalar, with labels only.
        losses: unweighted terms by name: task, fusion, av (where a modality is read), text and, where they are wanted,
            verbalised, polarity, prototypes, lm.
        polarity: the prediction [b].
        fusion_polarity: mean over the fusion tokens' own heads [b].
        text_polarity: from the last text token [b].
        av_polarity: from the audiovisual context [b]; means nothing for a row without any. None where no modality is
            read.
        task_polarity, verbalised_polarity: with ``readout="both"``, the two that the prediction is the mean of [b].
        modality_polarity: name -> from that modality alone [b], where modalities have heads of their own.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    polarity: Tensor | None = None
    fusion_polarity: Tensor | None = None
    text_polarity: Tensor | None = None
    av_polarity: Tensor | None = None
    task_polarity: Tensor | None = None
    verbalised_polarity: Tensor | None = None
    modality_polarity: dict[str, Tensor] | None = None


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
        self.lm_lora = SharedLock()  # shared by passes that need the LM's LoRA, held alone to switch it off

    def forward(
        self,
        stack: FusionStack,
        config: DeepMLFConfig,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        loss_counts: Mapping[str, Tensor] | None = None,
        head_labels: Mapping[str, Tensor] | None = None,
        unimodal_labels: Tensor | None = None,
        **features: Tensor | None,
    ) -> DeepMLFOutput:
        """See :meth:`deepmlf_llm.model.DeepMLFModel.forward`.

        Raises:
            InjectionError: MM Blocks have been taken out of the decoder.
        """
        if not self.injection.attached:
            raise InjectionError(
                "this model was ejected or merged: its MM Blocks are no longer in the decoder; use what eject() or "
                "merge_and_unload() gave back"
            )
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        input_ids, mask = left_padded(input_ids, mask)
        inputs = self._features(config, features, len(input_ids), stack)
        context, readers = stack.encode(inputs)
        context_mask = None if context is None else stack.topology.mask(context)
        state = FusionState(stack.blocks, readers, context_mask, stack.num_tokens, notes=stack.noted_layers)
        tokens = stack.fusion_tokens(len(input_ids)).to(self.decoder.dtype)
        cache, kept = self.cache, self.token_cache  # another thread may exchange them meanwhile
        if cache is not None:
            cache.follow_weights()
            if kept is not None:
                kept.follow(cache.key)
        augmented = stack.training and config.seqaug.changes_text
        decoder = self.running(config, stack)
        text = Text(decoder, config, input_ids, mask, cache, augmented)
        full_mask = torch.cat([mask, mask.new_ones(len(mask), stack.num_tokens)], dim=1)
        run = choose_pass(decoder, config, cache is not None, kept, self.text_once)
        given = PassInput(text, tokens, full_mask, state, stack.topology.reads(tokens.device))
        if not torch.is_grad_enabled():
            run = in_one_pass(run, given, config, kept)
        states = run(given)
        read = (states.tokens, states.last_text)
        if stack.layer_mix is not None:
            read = mixed_states(self.decoder, stack.layer_mix, state, states)
        mean = None if context is None else context.mean()
        parts = {} if context is None else {n: context.parts[n].mean() for n in own_heads(config.unimodal_targets)}
        predictions = stack.heads(*read, mean, states.tokens[:, -1], parts)
        unimodal = None
        if unimodal_labels is not None and config.unimodal_targets:
            heard = {name: frames_mask.any(dim=1) for name, (_, frames_mask) in inputs.items()}
            unimodal = unimodal_of(unimodal_terms(config.unimodal_targets), unimodal_labels, heard)
        own = head_labels, unimodal
        return self._output(config, predictions, states, context, input_ids, mask, labels, loss_counts, own)

    def _features(
        self, config: DeepMLFConfig, given: Mapping[str, Tensor | None], batch: int, stack: FusionStack
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Name -> (frames [b x t x d_m], mask [b x t]) for every modality of the config; not given means absent."""
        names = [*config.modalities, *(f"{name}_mask" for name in config.modalities)]
        for key in given:
            if key not in names:
                expected = f"expected {', '.join(names)}" if names else "this adapter reads text alone (modalities={})"
                raise ConfigError(f"forward got {key!r}{suggest(key, names)}: {expected}")
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

    def running(self, config: DeepMLFConfig, stack: FusionStack) -> Decoder:
        """The LM as far as an adapter runs it."""
        return self.decoder.until(stack.layers[-1] + 1 if config.truncate_lm else None)

    def text_depth(self, config: DeepMLFConfig, stack: FusionStack) -> int | None:
        """Layers whose text never sees a fusion token; None: all that run."""
        return stack.layers[0] + 1 if config.blocks_change_text else None

    def lowest_kept(self, config: DeepMLFConfig, stack: FusionStack) -> int:
        """The lowest layer whose keys and values of the text every step reads, once frozen tokens are kept too."""
        above = config.freeze_fusion_tokens or config.fusion_entry == "first_block"
        return stack.layers[0] + 1 if above else 0

    def _output(
        self,
        config: DeepMLFConfig,
        predictions: Predictions,
        states: States,
        context: AVContext | None,
        input_ids: Tensor,
        mask: Tensor,
        labels: Tensor | None,
        loss_counts: Mapping[str, Tensor] | None,
        own: tuple[Mapping[str, Tensor] | None, Unimodal | None],
    ) -> DeepMLFOutput:
        output = DeepMLFOutput(
            polarity=_per_utterance(predictions.final),
            fusion_polarity=_per_utterance(predictions.fusion.mean(dim=1)),
            text_polarity=_per_utterance(predictions.text),
            av_polarity=None if predictions.av is None else _per_utterance(predictions.av),
            task_polarity=None if predictions.verbalised is None else _per_utterance(predictions.task),
            verbalised_polarity=None if predictions.verbalised is None else _per_utterance(predictions.verbalised),
            modality_polarity={name: _per_utterance(found) for name, found in predictions.modalities.items()} or None,
        )
        if labels is not None:
            next_token = None
            if config.objective.gamma > 0 and states.text is not None:
                next_token = partial(next_token_sum, self.decoder.logits, states.text, input_ids, mask)
            present = torch.zeros_like(mask[:, 0], dtype=torch.bool) if context is None else context.mask.any(dim=1)
            of_heads, unimodal = own
            judged = next_token, of_heads, task_loss(config), unimodal
            terms = loss_terms(config.objective, predictions, labels, mask, present, *judged)
            output.loss, output.losses = combine(terms, loss_counts)
        return output


def _per_utterance(x: Tensor) -> Any:
    """[b x 1] -> [b]; [b x o] stays."""
    return x.squeeze(-1) if x.shape[-1] == 1 else x
