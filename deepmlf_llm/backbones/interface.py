"""A live decoder seen through the interface of its family: every declared path is checked against the model.

Nothing here changes a model: no class is swapped, no layer is found by its class name.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepmlf_llm.backbones.families import DecoderInterface, find_interface
from deepmlf_llm.backbones.quantization import dequantized_weight, is_bitsandbytes
from deepmlf_llm.errors import BaseModelError
from deepmlf_llm.modules.feed_forward import FFWParts


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
            raise BaseModelError(f"decoder interface {source!r}: layers={self.interface.layers!r} is not a ModuleList")
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

    @property
    def dtype(self) -> torch.dtype:
        """Of the input embeddings, not read off ``embeddings.weight``: under ZeRO-3 DeepSpeed gathers a weight that is
        read outside its module's forward, and keeps it through the backward pass too."""
        found: torch.dtype = next(self.embeddings.parameters()).dtype
        return found

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


def layer_output(output: Any) -> Tensor:
    """Hidden states [b x s x d] of a layer's output, which is a tensor, a tuple or a ModelOutput.

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
