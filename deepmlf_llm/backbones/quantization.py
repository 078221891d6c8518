"""4-bit and 8-bit base models through bitsandbytes: how to ask for them, and how to read their weights back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deepmlf_llm.errors import BaseModelError
from deepmlf_llm.extras import require
from deepmlf_llm.modules.precision import at_least_fp32

QUANTIZATIONS = ("none", "nf4", "fp4", "int8")


def is_packed(weight: Any) -> bool:
    """Whether a parameter holds packed 4-bit values. Their bytes are no numbers of its dtype, which under ZeRO-3 is a
    floating-point one."""
    return type(weight).__name__ == "Params4bit"


def quantization_config(kind: str, compute_dtype: torch.dtype, storage_dtype: torch.dtype | None = None) -> Any:
    """transformers' ``BitsAndBytesConfig`` for ``kind``, or None for ``"none"``.

    Args:
        kind: one of ``QUANTIZATIONS``; nf4 and fp4 quantize their constants too (double quantization).
        compute_dtype: in which 4-bit matmuls run.
        storage_dtype: of the packed weights; ZeRO-3 shards only if it equals the other parameters' dtype.

    Raises:
        BaseModelError: unknown ``kind``.
        MissingPackageError: bitsandbytes is not installed.
    """
    if kind not in QUANTIZATIONS:
        raise BaseModelError(f"quantization={kind!r}: expected one of {', '.join(map(repr, QUANTIZATIONS))}")
    if kind == "none":
        return None
    require("bitsandbytes", f"quantization={kind!r}")
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_quant_storage=storage_dtype or torch.uint8,
    )


def is_bitsandbytes(module: nn.Module) -> bool:
    """Whether a layer's weight is packed by bitsandbytes."""
    return type(module).__name__ in ("Linear4bit", "Linear8bitLt")


def _bitsandbytes_linears(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if is_bitsandbytes(module)]


def is_quantized(model: nn.Module) -> bool:
    return bool(_bitsandbytes_linears(model))


def quantization_of(model: nn.Module) -> str:
    """What the model's linear layers are stored in: ``"none"``, ``"nf4"``, ``"fp4"`` or ``"int8"``."""
    for module in _bitsandbytes_linears(model):
        weight: Any = module.weight
        return str(weight.quant_type) if type(module).__name__ == "Linear4bit" else "int8"
    return "none"


def keep_weights_in_place(model: nn.Module) -> None:
    """Forbids bitsandbytes to repack 4-bit weights for AVX512-BF16 CPUs on the first forward in eval mode.

    After that repacking no gradient flows through the layer, without an error, and dequantizing it gives garbage.
    """
    for module in _bitsandbytes_linears(model):
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


@torch.no_grad()
def dequantized_weight(projection: nn.Module) -> Tensor:
    """A projection's weight as [out x in] in fp32 (fp64 stays): ``nn.Linear``, GPT-2's Conv1D, 4-bit or 8-bit."""
    weight: Any = projection.weight
    kind = type(projection).__name__
    if kind == "Linear4bit":
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state).float()
    if kind == "Linear8bitLt":
        from bitsandbytes.functional import int8_vectorwise_dequant

        state: Any = projection.state
        packed = weight.data if state.CB is None else state.CB
        scale = weight.SCB if state.SCB is None else state.SCB
        return int8_vectorwise_dequant(packed, scale).float()
    weight = weight.detach().to(at_least_fp32(weight))
    return weight.T if kind == "Conv1D" else weight
