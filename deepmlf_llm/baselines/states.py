"""What the frozen LM makes of a transcript: states of each layer, pooled over the tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepmlf_llm.backbones import Decoder, run_layers
from deepmlf_llm.backbones.interface import layer_output

POOLINGS = ("last", "mean")
_AT_ONCE = 32  # texts in a batch


@torch.no_grad()
def pooled_states(decoder: Decoder, split: Any, collate: Any) -> NDArray[np.float32]:
    """States of a split's texts after each layer: of the last token, and the mean over tokens.

    Args:
        decoder: frozen.
        split: tokenised [n].
        collate: makes a batch of its items, padded on the left.

    Returns:
        [poolings x layers x n x d]
    """
    order = np.argsort(split.lengths, kind="stable")
    device = decoder.embeddings.weight.device
    result: NDArray[np.float32] | None = None
    for rows in np.array_split(order, -(-len(order) // _AT_ONCE)):
        batch = collate([{"input_ids": split.input_ids[int(i)]} for i in rows])
        mask = batch["attention_mask"].to(device)
        layers = torch.stack(
            _layer_outputs(decoder, batch["input_ids"].to(device), mask)
        ).float()  # [layers x b x l x d]
        real = mask[None, :, :, None]
        pooled = torch.stack([layers[:, :, -1], (layers * real).sum(dim=2) / real.sum(dim=2)]).cpu().numpy()
        if result is None:
            result = np.empty((*pooled.shape[:2], len(split), pooled.shape[-1]), dtype=np.float32)
        result[:, :, rows] = pooled
    assert result is not None
    return result


def _layer_outputs(decoder: Decoder, input_ids: Tensor, mask: Tensor) -> list[Tensor]:
    kept: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda m, a, out: kept.append(layer_output(out))) for layer in decoder.layers]
    try:
        run_layers(decoder, decoder.embeddings(input_ids), mask)
    finally:
        for hook in hooks:
            hook.remove()
    return kept
