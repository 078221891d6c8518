"""Attention where PyTorch's fused kernels are slow, or must not be chosen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from deepmlf_llm.modules.precision import at_least_fp32

HALF = (torch.bfloat16, torch.float16)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float = 0.0) -> Tensor:
    """Multi-head attention by PyTorch's fused kernel; by :func:`written_out` where that trains faster: in half
    precision the fused kernel's backward pass on a CPU takes four times as long.

    Args:
        query: [b x h x s x e]
        key, value: [b x h x t x e]
        mask: True where a position may be read [b x (1 or h) x (1 or s) x t]; somewhere in each row.
        dropout: of the weights.

    Returns:
        [b x s x h x e]
    """
    if query.is_cpu and query.requires_grad and query.dtype in HALF:
        return written_out(query, [(key, value)], mask, query.shape[-1] ** -0.5, dropout)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout).transpose(1, 2)


def written_out(
    query: Tensor, parts: Sequence[tuple[Tensor, Tensor]], mask: Tensor, scaling: float, dropout: float = 0.0
) -> Tensor:
    """Grouped-query attention (arXiv 2305.13245) over keys and values in parts that are neither joined nor repeated.

    Notation: b batch, h key-value heads, g query heads of each, s positions, t positions that are read, e head width.

    Args:
        query: [b x (h g) x s x e]
        parts: keys and values [b x h x t_i x e], whose t_i add up to t.
        mask: True where a position may be read [b x 1 x (1 or s) x t].
        scaling: of the scores.
        dropout: of the weights.

    Returns:
        [b x s x (h g) x e]
    """
    heads, length = parts[0][0].shape[1], query.shape[2]
    groups = (query * scaling).unflatten(1, (heads, -1)).flatten(2, 3)  # [b x h x (g s) x e]
    scores = [groups @ key.transpose(2, 3) for key, _ in parts]
    joined = scores[0] if len(parts) == 1 else torch.cat(scores, dim=-1)
    joined = joined.unflatten(2, (-1, length))  # [b x h x g x s x t]
    joined = joined.masked_fill(~mask[:, :, None], torch.finfo(joined.dtype).min)
    weights = F.softmax(joined, dim=-1, dtype=at_least_fp32(joined)).to(query.dtype).flatten(2, 3)
    weights = F.dropout(weights, dropout)
    shares = weights.split([key.shape[2] for key, _ in parts], dim=-1)
    read = [share @ value for share, (_, value) in zip(shares, parts, strict=True)]
    out = read[0] if len(parts) == 1 else read[0] + read[1]
    return out.unflatten(2, (-1, length)).flatten(1, 2).transpose(1, 2)


def leave_out_cudnn_attention() -> None:
    """Keeps this process from choosing cuDNN's attention, of the LM too.

    With a mask its backward pass gives NaN for some lengths on Hopper (seen with PyTorch 2.11;
    https://github.com/pytorch/pytorch/issues/196678). The memory-efficient kernel, the next choice, does not.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
