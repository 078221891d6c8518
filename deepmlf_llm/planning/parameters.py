"""Parameters of a model by part: how many, how many of them are trained, and the bytes they take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from deepmlf_llm.planning.memory import Gathered
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


def gathered_weights(model: Any, dtype: torch.dtype, quantization: str = "none") -> Gathered:
    """What ZeRO-3 makes whole of a model; its weights may be on the meta device, unquantized.

    Args:
        model, dtype, quantization: as for :func:`parameters_by_part`.
    """
    decoder, config = model.fused_decoder.decoder, model.deepmlf_config
    narrow = dtype.itemsize if quantization == "none" else 0.53 if quantization in ("nf4", "fp4") else 1
    layers = [sum(p.numel() for p in layer.parameters()) for layer in decoder.layers]
    largest = max(p.numel() for layer in decoder.layers for p in layer.parameters())
    own = max((4 * p.numel() for p in model.active_stack.parameters() if p.requires_grad), default=0)
    table = decoder.embeddings.weight.numel() * dtype.itemsize
    head = decoder.lm.get_output_embeddings().weight.numel() * dtype.itemsize if config.objective.gamma > 0 else 0
    return Gathered(table, max(int(largest * narrow), own, head), int(sum(layers) * narrow), config.has_lm_lora)
