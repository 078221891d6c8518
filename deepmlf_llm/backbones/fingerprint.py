"""What identifies a base model, whatever dtype or quantisation it is loaded in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

SAMPLED_ROWS = 64
SAMPLED_ELEMENTS = 256


@torch.no_grad()
def base_fingerprint(lm: nn.Module) -> dict[str, Any]:
    """Family, sizes, and a hash over a sample of embedding rows.

    Embeddings are what 4-bit and 8-bit loading leave alone; rounded to bf16 they are the same bytes in every dtype the
    model is loaded in.
    """
    config: Any = lm.config.get_text_config()  # type: ignore[operator, union-attr]
    embeddings = lm.get_input_embeddings()  # type: ignore[operator]
    weight = getattr(embeddings, "base_layer", embeddings).weight
    fingerprint = {
        "family": config.model_type,
        "width": int(config.hidden_size),
        "layers": int(config.num_hidden_layers),
        "vocabulary": int(config.vocab_size),
    }
    if weight.device.type != "meta" and weight.shape[0]:
        rows = torch.linspace(0, weight.shape[0] - 1, SAMPLED_ROWS).long().to(weight.device)
        sample = weight[rows].to("cpu", torch.bfloat16).contiguous()
        fingerprint["weights"] = hashlib.sha256(sample.view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
    return fingerprint


@torch.no_grad()
def weights_digest(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """A hash over a sample of each of these weights as they are loaded: another after any fine-tuning or merge."""
    digest = hashlib.sha256()
    for name, weight in parameters:
        flat = weight.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLED_ELEMENTS)].to("cpu").contiguous()
        digest.update(name.encode() + sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def compare_fingerprints(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What differs, one phrase each; empty where the base is the right one."""
    return [
        f"{key}: the adapter was trained on {expected[key]}, this base has {found.get(key)}"
        for key in expected
        if key in found and expected[key] != found[key]
    ]
