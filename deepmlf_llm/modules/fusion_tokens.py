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
    """

    def __init__(self, num_tokens: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, width)
        nn.init.normal_(self.embedding.weight, std=INIT_STD)

    @property
    def num_tokens(self) -> int:
        return self.embedding.num_embeddings

    def forward(self, batch_size: int) -> Tensor:
        """The tokens, once per sample [batch_size x n x d]."""
        index = torch.arange(self.num_tokens, device=self.embedding.weight.device)
        return self.embedding(index).expand(batch_size, -1, -1)
