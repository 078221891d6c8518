"""Linear layers of a quantized base without their weights: what they store, and what they allocate as they run.

As bitsandbytes has them (4-bit: blocks of 64 weights, their scales again quantized in blocks of 256; QLoRA,
arXiv 2305.14314, section 3): the packed weight is made whole for each product, forward and backward, and dropped again.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

BLOCK, SCALE_BLOCK = 64, 256
_TABLES = 4 * (16 + 256 + 1)  # bytes a layer: the code, that of its scales, their offset


def packed_bytes(elements: int, rows: int, kind: str) -> int:
    """Bytes that a linear weight takes.

    Args:
        elements: of the weight.
        rows: its outputs.
        kind: "nf4", "fp4" or "int8".
    """
    if kind == "int8":
        return elements + 4 * rows
    scales = -(-elements // BLOCK)
    return -(-elements // 2) + scales + 4 * -(-scales // SCALE_BLOCK) + _TABLES


def packed_linears(lm: nn.Module, head: Any) -> list[nn.Linear]:
    """The linear layers that are packed: all frozen ones but the LM's head, as transformers has it."""
    return [
        module
        for name, module in lm.named_modules()
        if type(module) is nn.Linear and module is not head and "lora_" not in name and ".deepmlf." not in f".{name}"
    ]


class _Product(torch.autograd.Function):
    """x W^T with a weight that lives only while it runs. The input is not kept: the weight is not trained.

    The whole weight is a ``new_empty`` of the packed one: by that, who counts operators knows it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        ctx.packed, ctx.shape, ctx.dtype = packed, shape, dtype
        return x @ packed.new_empty(shape, dtype=dtype).to(x.dtype).T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        return grad @ ctx.packed.new_empty(ctx.shape, dtype=ctx.dtype).to(grad.dtype), None, None, None


def _run(module: nn.Linear, shape: tuple[int, int], dtype: torch.dtype, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = _Product.apply(x.to(dtype), module.weight, shape, dtype)
    if module.bias is not None:
        out = out + module.bias
    return out.to(x.dtype)


def pack(module: nn.Linear, kind: str) -> None:
    """Exchanges a fake layer's weight for the bytes of a packed one, and its product."""
    weight = module.weight
    size = packed_bytes(weight.numel(), weight.shape[0], kind)
    shape, dtype = (weight.shape[0], weight.shape[1]), weight.dtype
    packed = torch.empty(size, dtype=torch.uint8, device=weight.device)
    module.weight = nn.Parameter(packed, requires_grad=False)
    module.forward = partial(_run, module, shape, dtype)  # type: ignore[method-assign]
