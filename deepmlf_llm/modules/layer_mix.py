"""Readout from several layers of the language model: a learned mix of their states.

Polarity is easiest to read in the middle of a decoder, and not best from its last layer (arXiv 2505.16491). As in ELMo
(arXiv 1802.05365): ``x = sum_l softmax(w)_l x_l``, x_l after the LM's final norm, so that all are of one scale.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LayerMix(nn.Module):
    """One mix for the fusion tokens and one for the last text token: what they need is at different depths.

    Both start as means.

    Args:
        layers: LM layers (0-based) whose states are mixed with those of the last, ascending.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.tokens = nn.Parameter(torch.zeros(len(self.layers) + 1))
        self.text = nn.Parameter(torch.zeros(len(self.layers) + 1))

    def forward(self, tokens: Sequence[Tensor], text: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Of each layer the fusion tokens [b x n x d] and the last text token [b x d] -> their mixes."""
        return _mix(self.tokens, tokens), _mix(self.text, text)


def _mix(weights: Tensor, states: Sequence[Tensor]) -> Tensor:
    stacked = torch.stack([state.to(weights.dtype) for state in states], dim=-1)
    return (stacked * weights.softmax(dim=0)).sum(dim=-1)
