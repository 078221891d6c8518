"""Learnable fusion tokens X_f: rows appended after the text, where a causal LM lets them read all of it.

DeepMLF, section 3 (arXiv 2504.11082): ``H0 = [X_t ; X_f]``, ``X_f ~ N(0, 0.02)``.
"""

import torch
from torch import Tensor, nn

INIT_STD = 0.02


class FusionTokens(nn.Module):
    """n learnable embeddings [n x d].

    An ``nn.Embedding`` looked up in this module's own forward, not a bare parameter: ZeRO-3 gathers weights module by
    module, and a bare parameter that another module reads stays a shard.

    Args:
        num_tokens, width: n, d.
        frozen: they stay as they start: a buffer, stored like what is trained, and no parameter of anybody's.
        scaled: X_f is ``mean + scale * weight``, dimension by dimension, with buffers that :meth:`stand_among` sets.
    """

    def __init__(self, num_tokens: int, width: int, frozen: bool = False, scaled: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, width)
        nn.init.normal_(self.embedding.weight, std=INIT_STD)
        if frozen:
            weight = self.embedding.weight.detach()
            del self.embedding.weight
            self.embedding.register_buffer("weight", weight)
        self.scaled = scaled
        if scaled:
            self.register_buffer("mean", torch.zeros(width))
            self.register_buffer("scale", torch.ones(width))

    @property
    def num_tokens(self) -> int:
        return self.embedding.num_embeddings

    @torch.no_grad()
    def stand_among(self, states: Tensor) -> None:
        """Scaled tokens get the mean and the standard deviation of ``states`` [k x d], dimension by dimension.

        Their weights stay N(0, 0.02), so that an optimizer moves them as far, for their size, as tokens that stand
        among embeddings.
        """
        self.get_buffer("mean").copy_(states.mean(dim=0))
        self.get_buffer("scale").copy_(states.std(dim=0) / INIT_STD)

    def forward(self, batch_size: int) -> Tensor:
        """The tokens, once per sample [batch_size x n x d]."""
        index = torch.arange(self.num_tokens, device=self.embedding.weight.device)
        tokens = self.embedding(index)
        if self.scaled:
            tokens = self.get_buffer("mean") + self.get_buffer("scale") * tokens
        return tokens.expand(batch_size, -1, -1)
