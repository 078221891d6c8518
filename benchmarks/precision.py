"""What a narrower dtype does to predictions: of the frozen LM, and of the text that is kept of it."""

from __future__ import annotations

import torch
from torch import Tensor
from variants import OurLoop

from deepmlf_llm.backbones.text_cache import TextCache

STORAGES = ("bfloat16", "float16", "int8")


def measure_precision(single: OurLoop, half: OurLoop) -> dict[str, dict[str, float]]:
    """Differences of polarities, mean and largest, over all batches of a loop.

    Args:
        single: with an fp32 LM and its text cached; its trained weights are what predicts everywhere.
        half: the same with a bf16 LM; its trained weights are replaced.
    """
    for loop in (single, half):
        loop.model.fused_decoder.token_cache = None  # it would bring in what the unrounded text made of the tokens
    expected = _polarities(single)
    own = single.model.fused_decoder.cache
    differences = {}
    for storage in STORAGES:
        single.model.fused_decoder.cache = TextCache(own.decoder, own.depth, storage=storage)
        differences[f"text cache as {storage}"] = _polarities(single) - expected
    single.model.fused_decoder.cache = own
    half.model.active_stack.load_state_dict(single.model.active_stack.state_dict())
    differences["LM and text cache in bfloat16"] = _polarities(half) - expected
    return {
        name: {"mean": float(x.abs().mean()), "largest": float(x.abs().max())} for name, x in differences.items()
    } | {"(spread of the polarities)": {"mean": float(expected.std()), "largest": float(expected.abs().max())}}


@torch.no_grad()
def _polarities(loop: OurLoop) -> Tensor:
    loop.model.eval()
    found = torch.cat([loop.model(**loop.batch(index)).polarity for index in range(len(loop.batches))])
    loop.model.train()
    return found
