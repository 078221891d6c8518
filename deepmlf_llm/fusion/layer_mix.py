"""The states that the heads read where they read several LM layers (``readout_layers="mix"``)."""

from __future__ import annotations

from torch import Tensor

from deepmlf_llm.backbones import Decoder
from deepmlf_llm.fusion.hooks import FusionState
from deepmlf_llm.fusion.passes import States
from deepmlf_llm.modules import LayerMix


def mixed_states(decoder: Decoder, mix: LayerMix, state: FusionState, states: States) -> tuple[Tensor, Tensor]:
    """Fusion tokens [b x n x d] and last text token [b x d], mixed over the layers.

    Args:
        decoder: the LM, whose final norm all states pass.
        mix: of the adapter.
        state: of the pass, which has noted the states behind the MM Blocks.
        states: what the pass ended in.
    """
    tokens, text = [], []
    for place, layer in enumerate(mix.layers):
        hidden = decoder.final_norm(state.noted[layer])
        tokens.append(hidden[:, -state.num_tokens :])
        text.append(hidden[:, 0] if states.earlier_text is None else states.earlier_text[:, place])
    return mix([*tokens, states.tokens], [*text, states.last_text])
