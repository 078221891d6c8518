"""The FFW of an MM Block: the LM block's own feed-forward network, shared or copied, exactly.

DeepMLF section 3 (arXiv 2504.11082) initialises it from the LM block's FFW and adapts it with LoRA, or tunes it fully.
Forms: ``down(act(gate(x)) * up(x))`` (LLaMA and kin; ``fused``: gate and up in one projection, Phi-3) and
``down(act(up(x)))`` (GPT-2 and kin). LoRA deltas belong on the projections, before the activation and the product.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from deepmlf_llm.modules.precision import at_least_fp32


@dataclass
class FFWParts:
    """An LM block's live feed-forward network, taken apart.

    Args:
        up, down: its projections; ``gate`` where the form has one. Any module that maps the last dimension.
        activation: its activation, exactly as the LM calls it (GPT-2: the tanh form of GELU).
        fused_gate: ``up`` holds gate and up side by side, gate first.
        post_norm: a norm on the way out (Gemma 2 and 3), if any.
        dequantized: returns a projection's weight as [out x in] in fp32, whatever its storage.
    """

    up: Any
    down: Any
    activation: Callable[[Tensor], Tensor]
    gate: Any = None
    fused_gate: bool = False
    post_norm: Callable[[Tensor], Tensor] | None = None
    dequantized: Callable[[Any], Tensor] | None = None

    def projections(self) -> dict[str, Any]:
        """Role -> module, in the order of the computation."""
        parts = {"gate": self.gate, "up": self.up, "down": self.down}
        return {role: module for role, module in parts.items() if module is not None}


class LowRank(nn.Module):
    """LoRA delta of one projection: ``(alpha / r) * B A dropout(x)``, B = 0 at the start (arXiv 2106.09685)."""

    def __init__(self, in_width: int, out_width: int, r: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.scale = alpha / r
        self.dropout = nn.Dropout(dropout)
        self.low = nn.Linear(in_width, r, bias=False)
        self.high = nn.Linear(r, out_width, bias=False)
        nn.init.kaiming_uniform_(self.low.weight, a=math.sqrt(5))
        nn.init.zeros_(self.high.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[.. x in] -> [.. x out]"""
        return self.high(self.low(self.dropout(x))) * self.scale

    def delta(self) -> Tensor:
        """The weight it adds [out x in], fp32 or better."""
        dtype = at_least_fp32(self.high.weight)
        return self.scale * self.high.weight.to(dtype) @ self.low.weight.to(dtype)


def _dense_weight(projection: Any, parts: FFWParts) -> Tensor:
    if parts.dequantized is not None:
        return parts.dequantized(projection)
    weight: Tensor = projection.weight.detach()
    return weight.to(at_least_fp32(weight))


class FeedForward(nn.Module):
    """An LM block's FFW as an MM Block uses it.

    Args:
        parts: the LM block's live FFW. With ``weights="shared"`` its modules are called, never registered here: they
            stay frozen, in the LM's state dict only, 4-bit if the LM is. Each MM Block owns just its LoRA.
        weights: ``"shared"`` or ``"copy"`` (own fp32 weights, fully trained, no LoRA).
        r, alpha, dropout: LoRA on each projection of a shared FFW; ``r=0``: the FFW as it is.
        output_dropout: on what it returns, in training, where GPT-2's own has it; 0.1 in the authors' code.
    """

    def __init__(
        self,
        parts: FFWParts,
        weights: str = "shared",
        r: int = 16,
        alpha: float = 16.0,
        dropout: float = 0.0,
        output_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.output_dropout = nn.Dropout(output_dropout)
        self._parts = (parts,)  # in a tuple: a reference that nn.Module does not register
        self.ffw_lora = nn.ModuleDict()
        self.own = nn.ModuleDict()
        if weights == "copy":
            self.take_ownership()
        elif r > 0:
            for role, projection in parts.projections().items():
                in_width, out_width = projection_widths(projection)
                self.ffw_lora[role] = LowRank(in_width, out_width, r, alpha, dropout)

    @torch.no_grad()
    def take_ownership(self) -> None:
        """Own fp32 copies of the shared projections, LoRA folded in: same function, whatever happens to the LM's.

        An FFW that owns its weights keeps them: they have been trained.
        """
        if self.own:
            return
        (parts,) = self._parts
        for role, projection in parts.projections().items():
            weight = _dense_weight(projection, parts).clone()
            if role in self.ffw_lora:
                weight += cast(LowRank, self.ffw_lora[role]).delta().to(weight.device)
            bias = getattr(projection, "bias", None)
            shape = weight.shape[1], weight.shape[0]
            own = nn.Linear(*shape, bias=bias is not None, device=weight.device, dtype=weight.dtype)
            own.weight.copy_(weight)
            if bias is not None:
                own.bias.copy_(bias)
            self.own[role] = own
        self.ffw_lora = nn.ModuleDict()

    def forward(self, x: Tensor) -> Tensor:
        """[.. x d] -> [.. x d]"""
        (parts,) = self._parts
        if parts.fused_gate:
            gate, up = self._project("up", x).chunk(2, dim=-1)
            hidden = parts.activation(gate) * up
        elif parts.gate is not None:
            hidden = parts.activation(self._project("gate", x)) * self._project("up", x)
        else:
            hidden = parts.activation(self._project("up", x))
        out = self._project("down", hidden)
        return self.output_dropout(out if parts.post_norm is None else parts.post_norm(out))

    def _project(self, role: str, x: Tensor) -> Tensor:
        if role in self.own:
            return self.own[role](x)
        projection = getattr(self._parts[0], role)
        out = projection(x.to(_input_dtype(projection, x)))
        return out + self.ffw_lora[role](x).to(out.dtype) if role in self.ffw_lora else out


def _input_dtype(projection: Any, x: Tensor) -> torch.dtype:
    """A frozen LM keeps the dtype it was loaded in; 4-bit and 8-bit weights (integers) take their input as it comes.

    Not read off ``projection.weight``, which DeepSpeed would gather here under ZeRO-3.
    """
    weight = next(projection.parameters(recurse=False), None)
    return weight.dtype if weight is not None and weight.is_floating_point() else x.dtype


def projection_widths(projection: Any) -> tuple[int, int]:
    """(in, out) of a projection: ``nn.Linear`` and its quantized variants, or GPT-2's Conv1D (weight [in x out])."""
    if hasattr(projection, "in_features"):
        return projection.in_features, projection.out_features
    in_width, out_width = projection.weight.shape
    return in_width, out_width
