"""Polarity predicted by the language model itself: the expected value over the words for the steps of the scale.

Regression-aware fine-tuning (RAFT, Lukasik et al., ICLR 2025, https://openreview.net/forum?id=xGs7Ch3Vyo): the
prediction is the expectation of the numbers that an LM might say next, and the regression loss of that expectation
trains what the LM has read. Here probabilities are taken over the steps' own tokens alone, ``p = softmax(W_steps x)``,
and so the rest of the vocabulary is never computed: ``y = sum_k p_k v_k``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Verbaliser(nn.Module):
    """The rows of the LM's own head that say the steps, frozen, and what the steps mean.

    Notation used for tensor shapes: b batch size, k steps, d LM width.

    The rows belong to the base model and go into no adapter's file; where an adapter is made they are taken from it.

    Args:
        weight: rows of the LM's head [k x d].
        bias: of the LM's head [k]; None: it has none.
        values: polarity of each step, k of them.
        cap: at which the LM caps its logits softly; None: it does not.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, values: Sequence[float], cap: float | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.values = tuple(values)
        self.cap = cap

    def forward(self, state: Tensor) -> Tensor:
        """The LM's last state at one position, after its final norm [b x d] -> polarity [b x 1]."""
        logits = nn.functional.linear(state, self.weight, self.bias)
        if self.cap is not None:
            logits = self.cap * (logits / self.cap).tanh()
        values = torch.tensor(self.values, dtype=logits.dtype, device=logits.device)
        return (logits.softmax(dim=-1) * values).sum(dim=-1, keepdim=True)
