"""What the task head reads of the fusion tokens: their mean, or a small Transformer in which groups of them meet.

DeepMLF (arXiv 2504.11082) takes the mean. SeRIn, whose groups of tokens have not read each other before, lets them
attend to each other here, at the end.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deepmlf_llm.modules.av_encoder import EncoderLayer

INIT_STD = 0.02  # of the groups' embeddings, as of fusion tokens


class TokenMean(nn.Module):
    """The mean of the fusion tokens [b x n x d] -> [b x d]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_width = width

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(dim=1)


class MixingHead(nn.Module):
    """Final states of the fusion tokens, and which group each is of, through Transformer layers; their mean.

    Notation used for tensor shapes: b batch size, n fusion tokens, d LM width, w width of this head.

    Args:
        width: d.
        sizes: tokens of each group, in order; n together.
        out_width: w.
        num_layers, num_heads, ffw_width, dropout: of the pre-norm Transformer layers.
    """

    def __init__(
        self,
        width: int,
        sizes: Sequence[int],
        out_width: int,
        num_layers: int,
        num_heads: int,
        ffw_width: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.out_width = out_width
        self.projection = nn.Linear(width, out_width)
        self.groups = nn.Embedding(len(self.sizes), out_width)
        nn.init.normal_(self.groups.weight, std=INIT_STD)
        self.layers = nn.ModuleList(EncoderLayer(out_width, num_heads, ffw_width, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(out_width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[b x n x d] -> [b x w]"""
        groups = self.groups(torch.arange(len(self.sizes), device=tokens.device))
        of_tokens = torch.cat([row.expand(size, -1) for row, size in zip(groups, self.sizes, strict=True)])  # [n x w]
        x = self.projection(tokens) + of_tokens
        attend = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        for layer in self.layers:
            x = layer(x, attend)
        return self.norm(x).mean(dim=1)
