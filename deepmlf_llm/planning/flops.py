"""FLOPs of one training step, counted on paper: what every seed, machine and kernel has in common.

Counted are matrix products, at two FLOPs for each multiply-add: projections and the two products of attention (queries
with keys, weights with values; causal masks save nothing here). Norms, activations, rotary tables, softmax and the
optimizer are not. Each product costs once forward; backward once for the gradient of its input where one is needed, and
once for the gradient of a weight that is trained. Frozen text computed without a graph costs its forward only, and
nothing where it is cached; so do frozen fusion tokens below the first MM Block. Recomputation (gradient checkpointing)
is not counted: it does no new work. MM Blocks are counted as reading keys and values of the context; on a CPU they
read the context itself where that takes less (modules/context_reading.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from deepmlf_llm.config.method import DeepMLFConfig

_FORWARD, _FROZEN, _TRAINED = 1, 2, 3  # passes: forward; + gradient of the input; + gradient of the weight


@dataclass(frozen=True)
class StepGeometry:
    """A typical step.

    Args:
        utterances: of the step, over all processes and accumulated batches.
        text_tokens: real tokens of an utterance's text.
        frames: modality -> frames of an utterance.
    """

    utterances: int
    text_tokens: int
    frames: Mapping[str, int]


def step_flops(model: Any, geometry: StepGeometry, text_cached: bool) -> int:
    """FLOPs of one step of a :class:`~deepmlf_llm.model.DeepMLFModel`; its weights may be on the meta device.

    Args:
        model: with its adapter.
        geometry: of the step.
        text_cached: the frozen text stream is read from a cache.
    """
    config, stack = model.deepmlf_config, model.active_stack
    decoder = model.fused_decoder.running(config, stack)
    b, t, n = geometry.utterances, geometry.text_tokens, config.num_fusion_tokens
    layers = [_LayerCost(decoder, index) for index in range(decoder.end or decoder.num_layers)]
    depth = stack.layers[0] + 1 if config.blocks_change_text else len(layers)
    if config.has_lm_lora:
        depth = 0  # the text changes at every step: everything runs with a graph
    total = 0
    for index, layer in enumerate(layers):
        below = index <= stack.layers[0]
        tokens = 0 if below and config.fusion_entry == "first_block" else n
        constant = below and config.freeze_fusion_tokens
        if index < depth:
            total += 0 if text_cached else b * layer.run(t, t, _FORWARD)
            if not (constant and text_cached):
                total += b * layer.run(tokens, t + tokens, _FORWARD if constant else _FROZEN)
        else:
            total += b * layer.run(t + tokens, t + tokens, _FROZEN)
    # Segregated groups attend over the frames of all, masked.
    frames = _context_frames(config, geometry) * max(1, len(stack.topology.sizes))
    for index, block in stack.mm_blocks.items():
        total += b * _block(block, decoder, int(index), config, t, n, frames)
    total += b * _mixing(stack.heads.mixing, n)
    total += b * _encoder(stack, config, geometry)
    heads = stack.heads
    elsewhere = (heads.fusion, heads.mixing, heads.av)  # the AV head is counted with its encoder
    once = _weights([heads]) - _weights([part for part in elsewhere if part is not None])
    total += b * _TRAINED * 2 * (_weights([heads.fusion]) * n + once)
    if heads.verbaliser is not None:
        total += b * _FROZEN * 2 * heads.verbaliser.weight.numel()
    if config.objective.gamma > 0:
        total += b * (t - 1) * _FROZEN * 2 * decoder.lm.get_output_embeddings().weight.numel()
    return total


def _weights(modules: Iterable[nn.Module]) -> int:
    """Elements of all matrices."""
    return sum(p.numel() for module in modules for p in module.parameters() if p.dim() == 2)


def _context_frames(config: DeepMLFConfig, geometry: StepGeometry) -> int:
    return min(config.av_encoder.max_frames, max(geometry.frames.values(), default=0))


class _LayerCost:
    """FLOPs of an LM layer for one utterance."""

    def __init__(self, decoder: Any, index: int) -> None:
        lm = decoder.lm.config.get_text_config()
        trained = [p for p in decoder.layers[index].parameters() if p.dim() == 2 and p.requires_grad]
        self.lora = sum(p.numel() for p in trained)
        self.weights = _weights([decoder.layers[index]]) - self.lora
        width = getattr(lm, "head_dim", None) or lm.hidden_size // lm.num_attention_heads
        self.attention_width = lm.num_attention_heads * width

    def run(self, queries: int, keys: int, passes: int) -> int:
        """``queries`` positions that read ``keys``. Both products of attention need both gradients."""
        lora = self.lora * (_TRAINED if passes > _FORWARD else _FORWARD)
        attention = 2 * queries * keys * self.attention_width * (_TRAINED if passes > _FORWARD else _FORWARD)
        return 2 * (queries * (self.weights * passes + lora) + attention)


def _block(
    block: Any, decoder: Any, index: int, config: DeepMLFConfig, text_tokens: int, tokens: int, frames: int
) -> int:
    """An MM Block, its share of the context's projection to keys and values included."""
    attention = 0
    if block.cross_attention is not None:
        inner = block.cross_attention.inner_width
        queries = {"tokens": tokens, "text": text_tokens, "both": text_tokens + tokens}[config.gca_queries]
        attention = queries * _weights([block.cross_attention]) + frames * config.av_encoder.width * 2 * inner
        attention += 2 * queries * frames * inner
    if block.ffw is None:
        return 2 * _TRAINED * attention
    positions = text_tokens + tokens if config.ffw_scope == "joint" else tokens
    shared = 0 if config.ffw_weights == "copy" else _weights(decoder.ffw_parts(index).projections().values())
    return 2 * (_TRAINED * attention + positions * (_FROZEN * shared + _TRAINED * _weights([block.ffw])))


def _mixing(head: Any, tokens: int) -> int:
    """The Transformer head in which segregated groups meet; a mean costs nothing."""
    layers = getattr(head, "layers", ())
    if not len(layers):
        return 0
    attention = 2 * tokens**2 * head.out_width * len(layers)
    return 2 * _TRAINED * (tokens * _weights([head.projection, *layers]) + attention)


def _encoder(stack: Any, config: DeepMLFConfig, geometry: StepGeometry) -> int:
    """E_AV, its own head, and pooling in time (one product with a matrix of windows) before or after its layers."""
    if stack.av_encoder is None:
        return 0
    encoder, pooled, width = stack.av_encoder, _context_frames(config, geometry), config.av_encoder.width
    first = config.av_encoder.pool == "before"
    total = pooled * _weights([encoder.join]) + _weights([stack.heads.av])
    for name, modality in encoder.encoders.items():
        raw, dim = geometry.frames[name], config.modalities[name].dim
        frames = pooled if first else raw
        needless = modality.projection.weight.numel() // _TRAINED  # nobody asks for the gradient of raw features
        total += frames * (_weights([modality]) - needless) + 2 * frames**2 * width * config.av_encoder.num_layers
        total += pooled * raw * (dim * _FORWARD if first else width * _FROZEN) // _TRAINED
    return 2 * _TRAINED * total
