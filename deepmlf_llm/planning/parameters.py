"""Parameters of a model by part: how many, how many of them are trained, and the bytes they take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from deepmlf_llm.planning.packed import packed_bytes, packed_linears

_PARTS = {
    "fusion_tokens": "fusion tokens",
    "av_encoder": "AV encoder",
    "mm_blocks": "MM Blocks",
    "context_projection": "MM Blocks",
    "heads": "heads",
    "layer_mix": "heads",
}


@dataclass
class Part:
    """Of one part of a model.

    Args:
        name: of the part.
        total, trained: parameters.
        size: bytes of them all.
    """

    name: str
    total: int = 0
    trained: int = 0
    size: int = 0


def parameters_by_part(model: Any, dtype: torch.dtype, quantization: str = "none") -> list[Part]:
    """Parts of a :class:`~deepmlf_llm.model.DeepMLFModel`; its weights may be on the meta device, unquantized.

    Args:
        model: with its adapter.
        dtype: that the frozen base will have.
        quantization: that it will have: none, nf4, fp4, int8.
    """
    stack, lm = model.active_stack, model.fused_decoder.decoder.lm
    parts = {name: Part(name) for name in ("language model", "LoRA on the LM", *dict.fromkeys(_PARTS.values()))}
    for name, parameter in stack.named_parameters():
        _add(parts[_PARTS.get(name.partition(".")[0], "heads")], parameter, parameter.element_size())
    own = {id(p) for p in stack.parameters()}
    packed: dict[int, int] = {}
    if quantization != "none":
        for linear in packed_linears(lm, lm.get_output_embeddings()):
            weight = linear.weight
            packed[id(weight)] = packed_bytes(weight.numel(), weight.shape[0], quantization)
    for parameter in lm.parameters():
        if id(parameter) in own:
            continue
        part = parts["LoRA on the LM" if parameter.requires_grad else "language model"]
        if id(parameter) in packed:
            part.total += parameter.numel()
            part.size += packed[id(parameter)]
        else:
            _add(part, parameter, parameter.element_size() if parameter.requires_grad else dtype.itemsize)
    return [part for part in parts.values() if part.total]


def _add(part: Part, parameter: nn.Parameter, element: int) -> None:
    part.total += parameter.numel()
    part.trained += parameter.numel() if parameter.requires_grad else 0
    part.size += parameter.numel() * element


def largest_layer(model: Any, dtype: torch.dtype, quantization: str = "none") -> int:
    """Bytes of the largest thing that ZeRO-3 gathers at once: an LM layer with its MM Block, or the embeddings."""
    decoder = model.fused_decoder.decoder
    narrow = dtype.itemsize if quantization == "none" else 0.53 if quantization in ("nf4", "fp4") else 1
    layer = max(sum(p.numel() for p in layer.parameters()) for layer in decoder.layers)
    block = max((sum(4 * p.numel() for p in b.parameters()) for b in model.active_stack.blocks.values()), default=0)
    return max(int(layer * narrow) + block, decoder.embeddings.weight.numel() * dtype.itemsize)
