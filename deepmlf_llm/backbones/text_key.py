"""What makes a text stream what it is: texts kept under one key serve every LM that would compute the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from deepmlf_llm.backbones.fingerprint import base_sizes, weights_digest
from deepmlf_llm.backbones.interface import Decoder
from deepmlf_llm.backbones.quantization import is_quantized

# Of a config: where it came from, and what training switches.
_IRRELEVANT = frozenset(
    ("_name_or_path", "transformers_version", "architectures", "dtype", "quantization_config", "use_cache")
)


def stream_key(decoder: Decoder, depth: int | None) -> dict[str, Any]:
    """All of a decoder that its text stream depends on, by name, for JSON.

    Args:
        decoder: the frozen LM.
        depth: layers of it that run; None: all, and the final norm.
    """
    lm = decoder.lm
    quantization = getattr(lm.config, "quantization_config", None) if is_quantized(lm) else None
    described = quantization if isinstance(quantization, dict) or quantization is None else quantization.to_dict()
    return {
        "base": base_sizes(lm),
        "weights": weights_digest(_weights(decoder, depth)),
        "attention": lm.config._attn_implementation,
        "config": _settings(lm.config.get_text_config().to_dict()),
        "dtype": str(decoder.embeddings.weight.dtype),
        "quantization": {k: str(v) for k, v in described.items()} if described else None,
    }


def _weights(decoder: Decoder, depth: int | None) -> Iterator[tuple[str, Tensor]]:
    """All that makes the stream but the LoRA beside it: fine-tuned models often keep their embeddings, which are
    all that the fingerprint looks at."""
    layers = list(decoder.layers)
    to_end = depth is None
    beyond = layers[decoder.end or len(layers) :] if to_end else [*layers[depth:], decoder.final_norm]
    unread = {id(weight) for module in beyond for weight in module.parameters()}
    for name, weight in decoder.body.named_parameters():
        if id(weight) not in unread and "lora_" not in name:
            yield name.replace("base_layer.", ""), weight


def _settings(config: dict[str, Any]) -> str:
    """A hash of what an LM's config says about its computation (rotary tables, sliding windows, ...)."""
    relevant = {key: value for key, value in config.items() if key not in _IRRELEVANT}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True, default=str).encode()).hexdigest()[:16]


class WeightWrites:
    """Whether an LM's weights have been written to, or have another dtype: cheap enough to be asked at every pass.

    Args:
        decoder: the LM.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._weights = list(decoder.body.parameters())
        self._seen = self._now()

    def _now(self) -> tuple[torch.dtype, int]:
        # A state dict that is loaded writes to each; tensors of inference mode count nothing.
        written = sum(0 if weight.is_inference() else weight._version for weight in self._weights)
        return self._decoder.embeddings.weight.dtype, written

    def any(self) -> bool:
        """Since it was asked last."""
        before, self._seen = self._seen, self._now()
        return self._seen != before
