"""Where a decoder family keeps its parts: a dozen strings a family, each checked against the live model.

Nothing here changes a model: no class is swapped, no layer is found by its class name. A family that is not listed can
be described by the user: a :class:`DecoderInterface`, then :func:`register_family`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from deepmlf_llm.backbones.quantization import dequantized_weight, is_bitsandbytes
from deepmlf_llm.errors import BaseModelError
from deepmlf_llm.modules.feed_forward import FFWParts


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


_LLAMA = DecoderInterface("llama")
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
)
_GEMMA = replace(_LLAMA, family="gemma", norm_offset=1.0)
_GEMMA2 = replace(_GEMMA, family="gemma2", ffw_norm="pre_feedforward_layernorm", post_norm="post_feedforward_layernorm")
FAMILIES: dict[str, DecoderInterface] = {
    "llama": _LLAMA,
    "mistral": replace(_LLAMA, family="mistral"),
    "qwen2": replace(_LLAMA, family="qwen2"),
    "qwen3": replace(_LLAMA, family="qwen3"),
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3_text": replace(_GEMMA2, family="gemma3_text"),
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
    "bert": "it is no causal decoder",
}


def register_family(model_type: str, interface: DecoderInterface) -> None:
    """Declares where decoders of ``model_type`` (as in their ``config.model_type``) keep their parts."""
    FAMILIES[model_type] = interface


def _follow(root: Any, path: str, what: str, source: str) -> Any:
    """``root.a.b`` along ``path``, or an error that names the step that fails."""
    here, walked = root, type(root).__name__
    for name in filter(None, path.split(".")):
        if not hasattr(here, name):
            children = ", ".join(sorted(dict(here.named_children()))) if isinstance(here, nn.Module) else ""
            raise BaseModelError(
                f"decoder interface {source!r}: {what}={path!r} is not there: {walked} has no {name!r} "
                f"(it has: {children or 'no child modules'})"
            )
        here, walked = getattr(here, name), f"{walked}.{name}"
    return here


class Decoder:
    """A live causal LM seen through its interface. Holds references, owns nothing, changes nothing.

    Args:
        lm: a transformers causal LM, PEFT LoRA layers inside it allowed.
        interface: default: by ``lm.config.model_type``.

    Raises:
        BaseModelError: no causal decoder, an unsupported family, or a declared path that the model does not have.
    """

    end: int | None = None
    """Layers that run, the lowest ones; None: all."""

    def __init__(self, lm: Any, interface: DecoderInterface | None = None) -> None:
        self.lm = lm
        self.interface = interface or find_interface(lm)
        source = self.interface.family
        self.body: Any = _follow(lm, self.interface.body, "body", source)
        self.layers: nn.ModuleList = _follow(self.body, self.interface.layers, "layers", source)
        self.final_norm = _follow(self.body, self.interface.final_norm, "final_norm", source)
        if not isinstance(self.layers, nn.ModuleList) or not len(self.layers):
            raise BaseModelError(f"decoder interface {source!r}: layers={self.interface.layers!r} is no ModuleList")
        # The body's name for kept keys and values: `cache` since transformers 5.24.
        arguments = inspect.signature(type(self.body).forward).parameters
        self.cache_argument = "cache" if "cache" in arguments else "past_key_values"
        embedded = getattr(self.embeddings, "embedding_dim", self.width)
        if not isinstance(self.final_norm, nn.Module) or embedded != self.width:
            raise BaseModelError(
                f"this {source!r} decoder has layers of width {self.width}, embeddings of width {embedded} and "
                f"{'a' if self.final_norm is not None else 'no'} final norm; DeepMLF needs one width and a final norm"
            )
        for index in range(len(self.layers)):
            self.ffw_parts(index)
            self.ffw_norm(index)

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def until(self, end: int | None) -> Decoder:
        """The same live decoder, of which layers from ``end`` on do not run: its final norm follows layer ``end - 1``.

        Args:
            end: number of layers; None, or all that there are: the whole decoder.
        """
        view = copy.copy(self)
        view.end = None if end is None or end >= self.num_layers else end
        return view

    @property
    def width(self) -> int:
        return int(self.lm.config.get_text_config().hidden_size)

    @property
    def num_heads(self) -> int:
        return int(self.lm.config.get_text_config().num_attention_heads)

    @property
    def embeddings(self) -> Any:
        """The input embeddings, a module with a ``weight``."""
        return self.lm.get_input_embeddings()

    def ffw_norm(self, index: int) -> nn.Module:
        """The norm before layer ``index``'s FFW."""
        return _follow(self.layers[index], self.interface.ffw_norm, "ffw_norm", self.interface.family)

    def ffw_parts(self, index: int) -> FFWParts:
        """Layer ``index``'s feed-forward network, without any LoRA that sits on it."""
        names, layer = self.interface, self.layers[index]
        holder = _follow(layer, names.ffw, "ffw", names.family)

        def part(name: str, what: str) -> Any:
            module = _follow(holder, name, what, names.family)
            return getattr(module, "base_layer", module)

        return FFWParts(
            up=part(names.up, "up"),
            down=part(names.down, "down"),
            gate=part(names.gate, "gate") if names.gate else None,
            activation=part(names.activation, "activation"),
            fused_gate=names.fused_gate,
            post_norm=_follow(layer, names.post_norm, "post_norm", names.family) if names.post_norm else None,
            dequantized=dequantized_weight,
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Normalised states [.. x d] -> logits [.. x vocabulary], soft-capped where the family does that."""
        logits: Tensor = self.lm.get_output_embeddings()(hidden)
        cap = self.logit_cap
        return logits if cap is None else cap * (logits / cap).tanh()

    @property
    def logit_cap(self) -> float | None:
        """Where the family caps its logits softly (Gemma 2), at what; None: it does not."""
        cap: float | None = getattr(self.lm.config.get_text_config(), "final_logit_softcapping", None)
        return cap

    def output_rows(self, ids: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """What of the LM's head makes the logits of these token ids: a copy of its rows [k x d] and biases [k], if it
        has any. The head may be tied to the embeddings, or quantized.

        Raises:
            BaseModelError: it has no row for one of them.
        """
        head = self.lm.get_output_embeddings()
        head = getattr(head, "base_layer", head)
        with torch.no_grad():
            weight, bias = head.weight, getattr(head, "bias", None)
            if is_bitsandbytes(head):
                weight = dequantized_weight(head)
            if not all(0 <= index < len(weight) for index in ids):
                raise BaseModelError(f"the LM's head has {len(weight)} rows; token ids {sorted(ids)} were asked for")
            where = torch.tensor(list(ids), device=weight.device)
            return weight[where].clone(), None if bias is None else bias[where].clone()


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
            f"{type(lm).__name__} is no causal language model of transformers: it has no output embeddings; "
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


def layer_output(output: Any) -> Tensor:
    """Hidden states [b x s x d] of a layer's output, be it a tensor, a tuple or a ModelOutput.

    ``output[0]`` on a bare tensor would silently take the first sample of the batch.
    """
    if isinstance(output, Tensor):
        return output
    return output[0]


def replace_layer_output(output: Any, hidden: Tensor) -> Any:
    """``output`` with other hidden states, in its own form."""
    if isinstance(output, Tensor):
        return hidden
    if isinstance(output, tuple):
        return (hidden, *output[1:])
    output[next(iter(output))] = hidden
    return output
