"""A fresh :class:`FusionStack` that fits a decoder; the decoder is only read."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from deepmlf_llm.backbones import Decoder, check_maskable, is_quantized
from deepmlf_llm.config.design import text_alone_problems
from deepmlf_llm.config.labels import own_heads
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.config.placement import resolve_fusion_layers
from deepmlf_llm.config.readout import NUM_STEPS, scale_steps
from deepmlf_llm.config.topology import group_sizes
from deepmlf_llm.errors import ConfigError, Problems
from deepmlf_llm.fusion.token_start import gathered, make_tokens
from deepmlf_llm.modules import (
    AVEncoder,
    FeedForward,
    FusionStack,
    Gate,
    GatedCrossAttention,
    Heads,
    LayerMix,
    MixingHead,
    MMBlock,
    OrdinalPrototypes,
    Pooled,
    Segregated,
    Verbaliser,
)
from deepmlf_llm.modules.precision import at_least_fp32
from deepmlf_llm.tasks.registry import regression_of


def build_stack(decoder: Decoder, config: DeepMLFConfig) -> FusionStack:
    """A fresh :class:`FusionStack` that fits ``decoder``, fp32 (fp64 on an fp64 one). The decoder is not changed.

    Raises:
        ConfigError: layers out of range, widths that do not divide, a text longer than the LM's positions, a copy of a
            quantized FFW that was not asked for, text alone with settings that leave an MM Block nothing to do, or
            segregated tokens with a kernel that takes no mask.
    """
    problems = Problems(ConfigError, "DeepMLFConfig")
    problems.messages.extend(text_alone_problems(config))
    problems.raise_if_any()
    layers = resolve_fusion_layers(config.fusion_layers, decoder.num_layers)
    limit = getattr(decoder.lm.config.get_text_config(), "max_position_embeddings", None)
    longest = config.text.max_tokens + config.num_fusion_tokens
    if limit is not None and longest > limit:
        raise ConfigError(
            f"text.max_tokens={config.text.max_tokens} and num_fusion_tokens={config.num_fusion_tokens} make "
            f"{longest} positions; this LM has {limit}"
        )
    copies = config.ffw_weights == "copy" and config.ffw_scope != "none"
    if copies and is_quantized(decoder.lm) and not config.dequantize_copy:
        raise ConfigError(
            "ffw_weights='copy' of a quantized base would dequantize each FFW to fp32: say so with "
            "dequantize_copy=true, or keep ffw_weights='shared' (one quantized copy, LoRA on top)"
        )
    width = 0 if config.reads_text_alone else config.av_encoder.width
    sizes = group_sizes(config)
    if sizes:
        check_maskable(decoder)
    stack = FusionStack(
        make_tokens(decoder, config, layers[0]),
        None if config.reads_text_alone else build_av_encoder(config),
        {index: _build_block(decoder, index, config) for index in layers},
        _build_heads(decoder, config, width, sizes),
        width,
        config.freeze_av_encoder,
        Segregated(list(config.modalities), sizes, width) if sizes else Pooled(),
        _build_layer_mix(decoder, config, layers),
    )
    return stack.to(decoder.embeddings.weight.device, at_least_fp32(decoder.embeddings.weight))


def _build_mixing(decoder: Decoder, config: DeepMLFConfig, sizes: tuple[int, ...]) -> MixingHead | None:
    head = config.mixing_head
    if not sizes:
        return None
    return MixingHead(decoder.width, sizes, head.width, head.num_layers, head.num_heads, head.ffw_width, head.dropout)


def _build_verbaliser(decoder: Decoder, config: DeepMLFConfig) -> Verbaliser | None:
    if config.readout == "heads":
        return None
    ids, steps = config.verbalised_ids, scale_steps(config)
    if ids is None:
        raise ConfigError(
            f"readout={config.readout!r}: which tokens say {', '.join(steps)} depends on the tokenizer; "
            "deepmlf_llm.fusion.verbalised.with_token_ids(config, tokenizer) chooses them"
        )
    head: Any = decoder.lm.get_output_embeddings()
    with gathered(list(head.parameters())):
        weight, bias = decoder.output_rows([ids[label] for label in steps])
    return Verbaliser(weight, bias, list(steps.values()), decoder.logit_cap)


def _build_layer_mix(decoder: Decoder, config: DeepMLFConfig, layers: list[int]) -> LayerMix | None:
    if config.readout_layers == "last":
        return None
    last = layers[-1] if config.truncate_lm else decoder.num_layers - 1
    below = [layer for layer in layers if layer < last]
    if not below:
        raise ConfigError(
            f"readout_layers='mix' mixes the states behind MM Blocks with the last; fusion_layers={layers} has none "
            "below the last layer"
        )
    return LayerMix(below)


def _build_prototypes(decoder: Decoder, config: DeepMLFConfig) -> OrdinalPrototypes | None:
    if config.objective.lambda_prototypes == 0:
        return None
    return OrdinalPrototypes(decoder.width, regression_of(config.dataset, config.task).steps(NUM_STEPS))


def build_av_encoder(config: DeepMLFConfig) -> AVEncoder:
    """A fresh AV encoder, fp32.

    Raises:
        ConfigError: no modality.
    """
    if config.reads_text_alone:
        raise ConfigError("modalities: an AV encoder needs at least one beside the text")
    av = config.av_encoder
    return AVEncoder(
        {name: modality.dim for name, modality in config.modalities.items()},
        av.width,
        av.num_layers,
        av.num_heads,
        av.ffw_width,
        av.dropout,
        av.input_dropout,
        av.max_frames,
        av.pool,
        av.feature_norm,
    )


def _build_attention(decoder: Decoder, config: DeepMLFConfig) -> GatedCrossAttention | None:
    if config.reads_text_alone:
        return None
    try:
        return GatedCrossAttention(
            decoder.width,
            config.gca_heads or decoder.num_heads,
            config.gca_head_width,
            _build_gate(decoder, config, config.gate_init if config.gca_gate_init is None else config.gca_gate_init),
            config.gca_dropout,
        )
    except ValueError as error:
        raise ConfigError(f"gca_heads, gca_head_width: {error}") from error


def _build_gate(decoder: Decoder, config: DeepMLFConfig, init: float) -> Gate:
    return Gate(config.gate, init, decoder.width if config.gate_per == "channel" else 1)


def _build_block(decoder: Decoder, index: int, config: DeepMLFConfig) -> MMBlock:
    attention = _build_attention(decoder, config)
    source = decoder.ffw_norm(index)
    ffw, ffw_norm, ffw_gate, attention_norm = None, None, None, None
    with gathered([*source.parameters(), *_ffw_parameters(decoder, index, config)]):
        if attention is not None:
            attention_norm = _build_norm(decoder, source, config.norm_init)
        if config.ffw_scope != "none":
            ffw = _build_ffw(decoder, index, config)
            ffw_norm = _build_norm(decoder, source, config.norm_init)
            ffw_gate = _build_gate(decoder, config, config.gate_init)
    return MMBlock(attention_norm, attention, ffw_norm, ffw, ffw_gate, config.ffw_scope, config.gca_queries)


def _build_ffw(decoder: Decoder, index: int, config: DeepMLFConfig) -> FeedForward:
    return FeedForward(
        decoder.ffw_parts(index),
        config.ffw_weights,
        config.ffw_lora_r,
        config.ffw_lora_alpha,
        config.ffw_lora_dropout,
        config.ffw_dropout,
    )


def _build_heads(decoder: Decoder, config: DeepMLFConfig, context_width: int, sizes: tuple[int, ...]) -> Heads:
    return Heads(
        decoder.width,
        context_width,
        config.head_width,
        config.head_norm,
        config.head_dropout,
        config.num_outputs,
        config.head_base,
        _build_mixing(decoder, config, sizes),
        verbaliser=_build_verbaliser(decoder, config),
        verbalised_only=config.readout == "verbalised",
        tells_sign=config.objective.lambda_polarity > 0,
        prototypes=_build_prototypes(decoder, config),
        modalities=own_heads(config.unimodal_targets),
        task_reads_context=config.head_reads_av,
    )


def _ffw_parameters(decoder: Decoder, index: int, config: DeepMLFConfig) -> list[nn.Parameter]:
    if config.ffw_weights != "copy" or config.ffw_scope == "none":
        return []
    return [p for module in decoder.ffw_parts(index).projections().values() for p in module.parameters()]


def _build_norm(decoder: Decoder, source: Any, init: str) -> nn.Module:
    """A norm of the decoder's kind: ones (and zeros), or the LM block's own FFW norm as its start."""
    eps = next((getattr(source, name) for name in ("variance_epsilon", "eps") if hasattr(source, name)), 1e-6)
    rms, dtype = decoder.interface.rms_norm, at_least_fp32(source.weight)
    norm: Any = (nn.RMSNorm if rms else nn.LayerNorm)(decoder.width, eps=eps, dtype=dtype)
    if init == "lm":
        with torch.no_grad():
            norm.weight.copy_(source.weight.to(dtype) + decoder.interface.norm_offset)
            if not rms:
                norm.bias.copy_(source.bias)
    return norm
