"""Ordinal prototypes: learned points along the polarity axis, to which fused states are drawn, nearer labels nearer.

The idea is that of MAESTRO (prototypes of ordered sentiment levels, contrasted with the fused state); the form here is
contrast with soft ordinal targets (Diaz and Marathe, "Soft Labels for Ordinal Regression", CVPR 2019): with prototypes
c_k of polarity v_k, evenly apart from the lowest label to the highest, and the mean x of an utterance's fusion tokens,

    p_k = softmax_k(cos(x, c_k) / temperature),  q_k = softmax_k(-|y - v_k| / step),  L = -sum_k q_k log p_k.

A label between two steps draws its utterance to both, so prototypes of neighbouring steps stay neighbours. It is a sum
over utterances, none of which sees another: the same in any batch, on any number of processes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURE = 0.2  # of cosines: from the nearest of 7 prototypes to the farthest, 6 steps, they are then 1.2 apart


class OrdinalPrototypes(nn.Module):
    """k learned prototypes [k x d]. They start on an arc from one random direction to another, in their order.

    Args:
        width: d, LM width.
        values: polarity of each prototype, ascending, evenly apart.
    """

    def __init__(self, width: int, values: Sequence[float]) -> None:
        super().__init__()
        self.values = tuple(values)
        low, high = F.normalize(torch.randn(2, width), dim=-1)
        along = torch.linspace(0, 1, len(self.values), device=low.device)[:, None]
        self.weight = nn.Parameter(F.normalize((1 - along) * low + along * high, dim=-1))

    def forward(self, state: Tensor) -> Tensor:
        """Pooled fusion tokens [b x d] -> log p_k [b x k]."""
        cosines = F.normalize(state, dim=-1) @ F.normalize(self.weight, dim=-1).T
        return (cosines / TEMPERATURE).log_softmax(dim=-1)


def ordinal_targets(polarity: Tensor, values: Sequence[float]) -> Tensor:
    """Labels [b] -> q_k [b x k], of steps at ``values``, ascending, evenly apart."""
    steps = torch.tensor(values, dtype=polarity.dtype, device=polarity.device)
    return (-(polarity[:, None] - steps).abs() / (values[1] - values[0])).softmax(dim=-1)
