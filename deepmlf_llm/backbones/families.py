"""Where a decoder family keeps its parts: a dozen strings a family.

A family that is not listed can be described by the user: a :class:`DecoderInterface`, then :func:`register_family`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from deepmlf_llm.errors import BaseModelError


@dataclass(frozen=True)
class DecoderInterface:
    """Attribute paths of one decoder family.

    Args:
        family: name of the family.
        body: from the causal LM to the module that runs all layers.
        layers: from ``body`` to its ``nn.ModuleList`` of layers.
        final_norm: from ``body`` to the norm after the last layer.
        ffw: from a layer to the module that holds its FFW; empty: the layer itself.
        up, down, gate: from ``ffw`` to the projections; ``gate`` empty: the FFW has none.
        fused_gate: ``up`` holds gate and up side by side.
        activation: from ``ffw`` to the activation.
        ffw_norm: from a layer to the norm before its FFW.
        post_norm: from a layer to a norm after its FFW; empty: none.
        rms_norm: the family's norms are RMSNorm (else LayerNorm).
        norm_offset: what its norms add to their stored weight (Gemma: 1).
        plain_attention: its attention layers hand keyword arguments on to the kernel, and score as softmax(q k) does:
            no cap, no bias, no sink. On a CPU such a family reads a kept text by
            :mod:`~deepmlf_llm.backbones.prefix_attention`.
    """

    family: str
    body: str = "model"
    layers: str = "layers"
    final_norm: str = "norm"
    ffw: str = "mlp"
    up: str = "up_proj"
    down: str = "down_proj"
    gate: str = "gate_proj"
    fused_gate: bool = False
    activation: str = "act_fn"
    ffw_norm: str = "post_attention_layernorm"
    post_norm: str = ""
    rms_norm: bool = True
    norm_offset: float = 0.0
    plain_attention: bool = False


_LLAMA = DecoderInterface("llama", plain_attention=True)
_GPT2 = DecoderInterface(
    "gpt2",
    body="transformer",
    layers="h",
    final_norm="ln_f",
    up="c_fc",
    down="c_proj",
    gate="",
    activation="act",
    ffw_norm="ln_2",
    rms_norm=False,
    plain_attention=True,
)
_GEMMA = replace(_LLAMA, family="gemma", norm_offset=1.0)
_GEMMA3 = replace(
    _GEMMA, family="gemma3_text", ffw_norm="pre_feedforward_layernorm", post_norm="post_feedforward_layernorm"
)
FAMILIES: dict[str, DecoderInterface] = {
    "llama": _LLAMA,
    "mistral": replace(_LLAMA, family="mistral"),
    "qwen2": replace(_LLAMA, family="qwen2"),
    "qwen3": replace(_LLAMA, family="qwen3"),
    "gemma": _GEMMA,
    "gemma2": replace(_GEMMA3, family="gemma2", plain_attention=False),
    "gemma3_text": _GEMMA3,
    "phi3": replace(_LLAMA, family="phi3", up="gate_up_proj", gate="", fused_gate=True, activation="activation_fn"),
    "gpt2": _GPT2,
    "gpt_neox": replace(
        _GPT2,
        family="gpt_neox",
        body="gpt_neox",
        layers="layers",
        final_norm="final_layer_norm",
        up="dense_h_to_4h",
        down="dense_4h_to_h",
        ffw_norm="post_attention_layernorm",
    ),
    "opt": replace(
        _GPT2,
        family="opt",
        body="model.decoder",
        layers="layers",
        final_norm="final_layer_norm",
        ffw="",
        up="fc1",
        down="fc2",
        activation="activation_fn",
        ffw_norm="final_layer_norm",
    ),
}
UNSUPPORTED = {
    "mixtral": "its FFW is a mixture of experts, and an MM Block needs one dense FFW to share or copy",
    "t5": "it is an encoder-decoder, and fusion tokens need a causal decoder",
    "bert": "it is not a causal decoder",
}


def register_family(model_type: str, interface: DecoderInterface) -> None:
    """Declares where decoders of ``model_type`` (as in their ``config.model_type``) keep their parts."""
    FAMILIES[model_type] = interface


def find_interface(lm: Any) -> DecoderInterface:
    """The declared interface of a live model's family.

    Raises:
        BaseModelError: not a transformers causal LM, or a family that is not declared.
    """
    config = getattr(lm, "config", None)
    model_type = getattr(config, "model_type", None)
    if model_type in UNSUPPORTED:
        raise BaseModelError(f"base model of type {model_type!r} is not supported: {UNSUPPORTED[model_type]}")
    if model_type is None or not hasattr(lm, "get_output_embeddings") or lm.get_output_embeddings() is None:
        raise BaseModelError(
            f"{type(lm).__name__} is not a causal language model of transformers: it has no output embeddings; "
            "load the base with AutoModelForCausalLM"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise BaseModelError(f"base model of type {model_type!r} is an encoder-decoder; DeepMLF needs a causal decoder")
    if model_type not in FAMILIES:
        lists = [name for name, m in lm.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
        raise BaseModelError(
            f"decoder family {model_type!r} is not declared (known: {', '.join(FAMILIES)}); describe it with "
            f"deepmlf_llm.backbones.register_family({model_type!r}, DecoderInterface(...)); its lists of layers: "
            f"{', '.join(lists) or 'none'}"
        )
    return FAMILIES[model_type]
