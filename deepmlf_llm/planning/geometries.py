"""Geometries of well-known decoders by name: what their config.json says, for planning where no hub can be reached."""

from __future__ import annotations

from typing import Any

import torch

from deepmlf_llm.backbones.shape import base_model_shape
from deepmlf_llm.backbones.smollm2 import SMOLLM2, smollm2_available

_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def _sized(*sizes: int, vocabulary: int, positions: int = 131072, tied: bool = False, **more: Any) -> dict[str, Any]:
    given = dict(zip(_SIZES, sizes, strict=True))
    return {
        **given,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "tie_word_embeddings": tied,
        **more,
    }


GEOMETRIES: dict[str, tuple[str, dict[str, Any]]] = {
    SMOLLM2: ("Llama", _sized(576, 1536, 30, 9, 3, vocabulary=49152, positions=8192, tied=True)),
    "llama-1b": ("Llama", _sized(2048, 8192, 16, 32, 8, vocabulary=128256, tied=True)),
    "llama-3b": ("Llama", _sized(3072, 8192, 28, 24, 8, vocabulary=128256, tied=True)),
    "llama-8b": ("Llama", _sized(4096, 14336, 32, 32, 8, vocabulary=128256)),
    "llama-70b": ("Llama", _sized(8192, 28672, 80, 64, 8, vocabulary=128256)),
    "llama-405b": ("Llama", _sized(16384, 53248, 126, 128, 8, vocabulary=128256)),
    "mistral-7b": ("Mistral", _sized(4096, 14336, 32, 32, 8, vocabulary=32768, positions=32768, sliding_window=None)),
    "qwen2.5-7b": ("Qwen2", _sized(3584, 18944, 28, 28, 4, vocabulary=152064)),
    "qwen2.5-72b": ("Qwen2", _sized(8192, 29568, 80, 64, 8, vocabulary=152064)),
}
"""Name -> family and sizes, as published: Llama 3.1 and 3.2, Mistral 7B v0.3, Qwen2.5, SmolLM2."""


def planned_shape(name: str, num_layers: int | None = None, revision: str | None = None) -> Any:
    """The decoder of one of :data:`GEOMETRIES`, or of whatever
    :func:`~deepmlf_llm.backbones.shape.base_model_shape` takes; frozen, on the meta device.

    Raises:
        BaseModelError: neither; not a causal decoder of a known family, or with fewer layers.
    """
    if name not in GEOMETRIES or (name == SMOLLM2 and smollm2_available()):
        return base_model_shape(name, num_layers, revision)
    import transformers

    from deepmlf_llm.backbones.loading import cut_layers

    family, sizes = GEOMETRIES[name]
    with torch.device("meta"):
        lm = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**sizes))
    if num_layers is not None:
        cut_layers(lm, num_layers)
    return lm.eval().requires_grad_(False)
