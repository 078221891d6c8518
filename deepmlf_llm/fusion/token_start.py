"""Where fusion tokens start: N(0, 0.02) as in the paper, or like the LM's own states where they enter."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from deepmlf_llm.backbones import Decoder, run_layers
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.modules import FusionTokens
from deepmlf_llm.modules.precision import at_least_fp32

ROWS, LENGTH = 4, 17
"""Of the texts that show what states are like: ids spread over the whole vocabulary, the same on every process."""

LARGEST = 3.0  # times the median: the size of a position's state that still shows what states are like


def make_tokens(decoder: Decoder, config: DeepMLFConfig, first: int) -> FusionTokens:
    """New fusion tokens; those of a stored adapter come to be overwritten, so nothing is computed for them.

    States deep in an LM are larger than its embeddings by orders of magnitude, in a few dimensions above all: N(0,
    0.02) would be lost among them, and hardly move. So behind an LM layer the default is the LM's own mean and
    deviation there.

    Args:
        decoder: the LM.
        config: of the adapter.
        first: LM layer of the first MM Block.
    """
    behind = first if config.fusion_entry == "first_block" else None
    scaled = (config.fusion_token_init or ("normal" if behind is None else "lm")) == "lm"
    tokens = FusionTokens(config.num_fusion_tokens, decoder.width, config.freeze_fusion_tokens, scaled)
    if scaled and not config.inference_mode and decoder.embeddings.weight.device.type != "meta":
        states = typical_states(decoder, behind)
        tokens = tokens.to(states.device, states.dtype)
        tokens.stand_among(states)
    return tokens


@torch.no_grad()
def typical_states(decoder: Decoder, behind: int | None) -> Tensor:
    """States of the LM [k x d], in fp32 (fp64 on an fp64 LM), of texts of ids from the whole vocabulary.

    Positions where many LMs put values of their own, hundreds of times the others' (attention sinks), are left out: the
    first of each text, and any that is larger than :data:`LARGEST` medians.

    Args:
        decoder: the LM.
        behind: layer whose output is looked at; None: the embeddings.
    """
    weight = decoder.embeddings.weight
    rows = getattr(weight, "ds_shape", weight.shape)[0]
    ids = torch.linspace(0, rows - 1, ROWS * LENGTH, dtype=torch.float64).long().reshape(LENGTH, ROWS).T
    ids = ids.to(weight.device)
    mask = torch.ones_like(ids)
    inside = {id(p) for p in decoder.layers.parameters()}
    with gathered([weight, *(p for p in decoder.body.parameters() if id(p) not in inside)]):
        states = decoder.embeddings(ids)
        for index in range(0 if behind is None else behind + 1):
            with gathered(decoder.layers[index].parameters()):
                states = run_layers(decoder, states, mask, index, index + 1)
    states = states[:, 1:].flatten(0, 1).to(at_least_fp32(weight))
    sizes = states.norm(dim=-1)
    return states[sizes <= LARGEST * sizes.median()]


def gathered(parameters: Iterable[nn.Parameter]) -> Any:
    """Under ZeRO-3 the LM's weights are shards: whole inside this context."""
    sharded = list({id(p): p for p in parameters if hasattr(p, "ds_id")}.values())
    if not sharded:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(sharded)
