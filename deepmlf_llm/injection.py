"""Putting MM Blocks into a decoder and taking them out again, without touching one of its modules or keys.

MM Blocks live in the adapter and run in forward hooks after their LM layer. :func:`probe` shows that nothing else has
changed: with every gate shut, the injected decoder is the base model.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from deepmlf_llm.backbones import Decoder, PackedRows, is_quantised, run_layers
from deepmlf_llm.backbones.interface import layer_output, replace_layer_output
from deepmlf_llm.config import DeepMLFConfig
from deepmlf_llm.errors import ConfigError, InjectionError
from deepmlf_llm.modules import (
    AVEncoder,
    FeedForward,
    FusionStack,
    FusionTokens,
    GatedCrossAttention,
    Heads,
    MMBlock,
)
from deepmlf_llm.modules.feed_forward import at_least_fp32
from deepmlf_llm.placement import resolve_fusion_layers

# transformers 5.17 recomputes a layer with its hooks, later ones its bare forward.
_HOOKS_ARE_RECOMPUTED = "__call__" in vars(GradientCheckpointingLayer)


@dataclass
class FusionState:
    """What MM Blocks need in one forward pass.

    It travels with the pass, as keyword argument ``fusion_state`` of every layer. Kept on the side it would be another
    pass's when activation checkpointing runs a layer again.

    Args:
        blocks: LM layer (0-based) -> MM Block to run after it.
        key_values: LM layer -> keys and values of the AV context for its MM Block [b x t x (2 h e)].
        context_mask: True where a frame is real [b x t].
        num_tokens: n; fusion tokens are the last n of the sequence.
        rows: where the rows of a packed sequence lie; None: rows are padded.
    """

    blocks: dict[int, MMBlock]
    key_values: dict[int, Tensor]
    context_mask: Tensor
    num_tokens: int
    rows: PackedRows | None = None

    def above(self, layer: int) -> FusionState:
        """For a pass in which MM Blocks up to ``layer``'s have run already."""
        blocks = {index: block for index, block in self.blocks.items() if index > layer}
        return FusionState(blocks, self.key_values, self.context_mask, self.num_tokens, self.rows)

    def fuse(self, index: int, hidden: Tensor) -> Tensor:
        """LM block ``index``'s output [b x s x d] (packed: [1 x k x d]) through its MM Block."""
        block = self.blocks[index]
        if self.rows is None:
            return block(hidden, self.key_values[index], self.context_mask, self.num_tokens)
        where = self.rows.last(self.num_tokens)  # [b x n]
        tokens = block.read(hidden[0, where], self.key_values[index], self.context_mask)
        if block.ffw_scope == "fusion":
            tokens = block.feed_forward(tokens)
        hidden = hidden[0].index_copy(0, where.flatten(), tokens.flatten(0, 1))[None]
        return hidden if block.ffw_scope == "fusion" else block.feed_forward(hidden)


class Injection:
    """Forward hooks that run MM Blocks after their LM layers, in passes that carry a :class:`FusionState`."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Hooks every layer; one without an MM Block in the pass's state passes through."""
        if not self._handles:
            for index, layer in enumerate(self.decoder.layers):
                self._handles.append(layer.register_forward_hook(partial(_fuse, index), with_kwargs=True))

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _fuse(index: int, layer: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    """The hook of layer ``index``. It holds nothing, so a deep copy of the model runs the copy's own MM Blocks."""
    state: FusionState | None = kwargs.get("fusion_state")
    if state is None or index not in state.blocks:
        return output
    hidden = layer_output(output)
    if recomputes(layer) and not _HOOKS_ARE_RECOMPUTED and torch.is_grad_enabled():
        fused = checkpoint(state.fuse, index, hidden, use_reentrant=False)
    else:
        fused = state.fuse(index, hidden)
    return replace_layer_output(output, fused)


def recomputes(layer: nn.Module) -> bool:
    """Whether transformers checkpoints this layer's activations now."""
    return bool(getattr(layer, "gradient_checkpointing", False)) and layer.training


def build_stack(decoder: Decoder, config: DeepMLFConfig) -> FusionStack:
    """A fresh :class:`FusionStack` that fits ``decoder``, fp32 (fp64 on an fp64 one). The decoder is not changed.

    Raises:
        ConfigError: layers out of range, no modality, widths that do not divide, a text longer than the LM's positions,
            or a copy of a quantised FFW that was not asked for.
    """
    layers = resolve_fusion_layers(config.fusion_layers, decoder.num_layers)
    if not config.modalities:
        raise ConfigError(
            "modalities: DeepMLF needs at least one beside the text, e.g. modalities={'audio': {'dim': 74}}"
        )
    limit = getattr(decoder.lm.config.get_text_config(), "max_position_embeddings", None)
    longest = config.text.max_tokens + config.num_fusion_tokens
    if limit is not None and longest > limit:
        raise ConfigError(
            f"text.max_tokens={config.text.max_tokens} and num_fusion_tokens={config.num_fusion_tokens} make "
            f"{longest} positions; this LM has {limit}"
        )
    if config.ffw_weights == "copy" and is_quantised(decoder.lm) and not config.dequantize_copy:
        raise ConfigError(
            "ffw_weights='copy' of a quantised base would dequantise each FFW to fp32: say so with "
            "dequantize_copy=true, or keep ffw_weights='shared' (one quantised copy, LoRA on top)"
        )
    av = config.av_encoder
    stack = FusionStack(
        FusionTokens(config.num_fusion_tokens, decoder.width),
        AVEncoder(
            {name: modality.dim for name, modality in config.modalities.items()},
            av.width,
            av.num_layers,
            av.num_heads,
            av.ffw_width,
            av.dropout,
            av.input_dropout,
            av.max_frames,
        ),
        {index: _build_block(decoder, index, config) for index in layers},
        Heads(decoder.width, av.width, config.head_width, config.head_norm, config.head_dropout, config.num_outputs),
        av.width,
    )
    return stack.to(decoder.embeddings.weight.device, at_least_fp32(decoder.embeddings.weight))


def _build_block(decoder: Decoder, index: int, config: DeepMLFConfig) -> MMBlock:
    try:
        attention = GatedCrossAttention(
            decoder.width, config.gca_heads or decoder.num_heads, config.gca_head_width, config.gate
        )
    except ValueError as error:
        raise ConfigError(f"gca_heads, gca_head_width: {error}") from error
    source = decoder.ffw_norm(index)
    gathered = _gathered([*source.parameters(), *_ffw_parameters(decoder, index, config)])
    with gathered:
        ffw = FeedForward(
            decoder.ffw_parts(index),
            config.ffw_weights,
            config.ffw_lora_r,
            config.ffw_lora_alpha,
            config.ffw_lora_dropout,
        )
        norms = [_build_norm(decoder, source, config.norm_init) for _ in range(2)]
    return MMBlock(norms[0], attention, norms[1], ffw, config.gate, config.ffw_scope)


def _ffw_parameters(decoder: Decoder, index: int, config: DeepMLFConfig) -> list[nn.Parameter]:
    if config.ffw_weights != "copy":
        return []
    return [p for module in decoder.ffw_parts(index).projections().values() for p in module.parameters()]


def _gathered(parameters: list[nn.Parameter]) -> Any:
    """Under ZeRO-3 the LM's weights are shards: whole inside this context."""
    sharded = [p for p in parameters if hasattr(p, "ds_id")]
    if not sharded:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(sharded)


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


def can_probe(decoder: Decoder) -> bool:
    """Weights must be here and whole: not on the meta device, not ZeRO-3 shards before the engine runs."""
    return all(p.device.type != "meta" and not hasattr(p, "ds_id") for p in decoder.lm.parameters())


@torch.no_grad()
def probe(decoder: Decoder, stack: FusionStack) -> None:
    """Shows that the injected decoder, gates shut, is the base model on the same ``[text ; fusion tokens]``.

    Bitwise in fp32 and fp64 on CPU; on other devices, dtypes and 4-bit bases to the tolerance of one rounding.

    Raises:
        InjectionError: it is not, or a pass does not reach every MM Block.
    """
    table = decoder.embeddings.weight
    ids = torch.arange(6, device=table.device).reshape(2, 3) % table.shape[0]
    mask = torch.ones(2, 3 + stack.num_tokens, dtype=torch.long, device=table.device)
    mask[1, 0] = 0  # a padded row
    inputs = torch.cat([decoder.embeddings(ids), stack.fusion_tokens(2).to(table.dtype)], dim=1)
    key_values = {
        layer: torch.linspace(-1, 1, 4 * width, device=table.device).reshape(2, 2, width)
        for layer, width in stack.key_value_widths.items()
    }
    present = torch.tensor([[True, True], [False, False]], device=table.device)
    reached: list[nn.Module] = []
    handles = [block.register_forward_hook(lambda m, a, o: reached.append(m)) for block in stack.blocks.values()]
    try:
        expected = run_layers(decoder, inputs, mask)
        with stack.gates_shut():
            state = FusionState(stack.blocks, key_values, present, stack.num_tokens)
            found = run_layers(decoder, inputs, mask, fusion_state=state)
    finally:
        for handle in handles:
            handle.remove()
    family = decoder.interface.family
    if len(reached) != len(stack.blocks):
        raise InjectionError(
            f"injection probe failed: {len(reached)} of {len(stack.blocks)} MM Blocks ran in a pass through the "
            f"{family} decoder; each layer must run once and receive the keyword arguments of the decoder's forward"
        )
    exact = table.device.type == "cpu" and table.dtype == at_least_fp32(table) and not is_quantised(decoder.lm)
    same = torch.equal(expected, found) if exact else torch.allclose(expected, found, rtol=1e-2, atol=1e-2)
    if not same:
        worst = (expected - found).abs().max().item()
        raise InjectionError(
            f"injection probe failed: with every gate shut the injected {family} decoder differs from its base by "
            f"{worst:.3g}; its layers do not return what the declared interface says"
        )
