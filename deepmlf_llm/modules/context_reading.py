"""How gated cross-attention reads the audiovisual context Z: by keys and values of it, or Z itself.

A head's keys are ``Z W_k``, its values ``Z W_v``. Where few positions query and Z is narrow,
``softmax(q (Z W_k)^T) Z W_v`` takes less as ``softmax((q W_k^T) Z^T) Z`` times ``W_v``: the weights meet each token and
not each frame, and nothing of the size of keys and values is ever made. The result is the same, up to rounding. Known
as weight absorption from multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from deepmlf_llm.modules.attention_kernels import attention, written_out


class ContextReader(Protocol):
    """What one MM Block's GCA may read of Z.

    Notation used for tensor shapes:
        - b, t, d: batch size, frames, width of Z
        - h, e: heads of GCA, width of one head
        - n: number of positions that query
    """

    def attend(self, query: Tensor, mask: Tensor, dropout: float = 0.0) -> Tensor:
        """Multi-head attention to Z.

        Args:
            query: [b x h x n x e]
            mask: True where a frame may be read [b x 1 x (1 or n) x t]; somewhere in each row.
            dropout: of the attention weights.

        Returns:
            [b x n x h x e]
        """


@dataclass(frozen=True)
class KeyValues:
    """Keys and values of Z, side by side [b x t x (2 h e)]. See :class:`ContextReader`."""

    key_value: Tensor

    def attend(self, query: Tensor, mask: Tensor, dropout: float = 0.0) -> Tensor:
        heads = self.key_value.to(query.dtype).unflatten(-1, (2, query.shape[1], -1))  # [b x t x 2 x h x e]
        key, value = heads.transpose(1, 3).unbind(2)  # [b x h x t x e]
        return attention(query, key, value, mask, dropout)


@dataclass(frozen=True)
class AbsorbedKeyValues:
    """Z [b x t x d] and the weights of its keys and values, side by side [d x (2 h e)]. See :class:`ContextReader`."""

    frames: Tensor
    weights: Tensor

    def attend(self, query: Tensor, mask: Tensor, dropout: float = 0.0) -> Tensor:
        frames = self.frames.to(query.dtype)[:, None]  # one head for all, as in multi-query attention
        to_key, to_value = self.weights.to(query.dtype).unflatten(-1, (2, query.shape[1], -1)).unbind(1)  # [d x h x e]
        asked = torch.einsum("bhne,dhe->bhnd", query, to_key)
        read = written_out(asked, [(frames, frames)], mask, query.shape[-1] ** -0.5, dropout)  # [b x n x h x d]
        return torch.einsum("bnhd,dhe->bnhe", read, to_value)


def absorbing_takes_less(batch: int, frames: int, context_width: int, tokens: int, head_width: int) -> bool:
    """Whether :class:`AbsorbedKeyValues` need fewer multiplications than :class:`KeyValues`, a head.

    Args:
        batch, frames, context_width: b, t, d.
        tokens: n.
        head_width: e.
    """
    absorbed = context_width * (batch * tokens * (head_width + frames) + context_width * head_width)
    return absorbed < batch * frames * head_width * (context_width + tokens)
