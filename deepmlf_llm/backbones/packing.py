"""Padding-free rows: a batch as one long sequence without padding, for FlashAttention's variable-length kernels.

With a padding mask PyTorch and transformers leave the flash kernels. Packed, rows follow one another: no mask is
needed, and no layer computes a padded position. ``attn_implementation="varlen"`` runs PyTorch's own flash kernel on
CUDA (``torch.nn.attention.varlen``), so flash-attn need not be installed; elsewhere a plain reference, row by row.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

VARLEN = "varlen"
PACKING = (VARLEN, "flash_attention_2", "flash_attention_3")  # kernels that take rows without padding


@dataclass
class PackedRows:
    """Where the real positions of a padded batch lie when its rows follow one another.

    Notation used for tensor shapes: b rows, s padded length, k real positions in all.

    Args:
        index: real positions of the flattened [b x s] batch [k].
        offsets: first position of each row, and k [b + 1], int32.
        longest: of the rows.
        shape: (b, s).
    """

    index: Tensor
    offsets: Tensor
    longest: int
    shape: tuple[int, int]

    @classmethod
    def of(cls, mask: Tensor) -> PackedRows:
        """From a mask, 1 where a position is real [b x s]."""
        lengths = mask.sum(dim=1, dtype=torch.int32)
        offsets = F.pad(lengths.cumsum(dim=0, dtype=torch.int32), (1, 0))
        index = mask.flatten().nonzero().squeeze(1)
        return cls(index, offsets, int(lengths.max()), (mask.shape[0], mask.shape[1]))

    def pack(self, x: Tensor) -> Tensor:
        """[b x s x ..] -> [1 x k x ..]"""
        return x.flatten(0, 1)[self.index][None]

    def unpack(self, x: Tensor) -> Tensor:
        """[1 x k x d] -> [b x s x d], zero where padded."""
        rows, length = self.shape
        return x.new_zeros(rows * length, x.shape[-1]).index_copy(0, self.index, x[0]).unflatten(0, (rows, length))

    def last(self, count: int) -> Tensor:
        """Packed positions of the last ``count`` of each row [b x count]."""
        return self.offsets[1:, None].long() - count + torch.arange(count, device=self.offsets.device)

    def take_last(self, hidden: Tensor, count: int) -> Tensor:
        """The last ``count`` positions of each row, out of [1 x k x d]: [b x count x d]."""
        return hidden[0, self.last(count)]

    def put_last(self, hidden: Tensor, last: Tensor) -> Tensor:
        """[1 x k x d] with the last positions of each row replaced by ``last`` [b x count x d]."""
        where = self.last(last.shape[1])
        return hidden[0].index_copy(0, where.flatten(), last.flatten(0, 1))[None]

    def kernel_arguments(self) -> dict[str, Any]:
        """What transformers' flash attention, and :func:`varlen_attention`, want to know."""
        return {
            "cu_seq_lens_q": self.offsets,
            "cu_seq_lens_k": self.offsets,
            "max_length_q": self.longest,
            "max_length_k": self.longest,
        }


@cache  # asked for in every layer
def varlen_kernel() -> Any:
    """PyTorch's variable-length flash kernel; None where this version has none that can be causal."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "window_size" in inspect.signature(varlen_attn).parameters else None


def varlen_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within packed rows; rows that are not packed go to transformers' sdpa.

    Args:
        query, key, value: [1 x h x k x e]; keys and values may have fewer heads.
        cu_seq_lens_q: see :class:`PackedRows`; None: rows are padded and ``attention_mask`` says where.

    Returns:
        [1 x k x h x e], and no weights.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    groups = query.shape[1] // key.shape[1]
    query, key, value = (
        x[0].transpose(0, 1)  # [k x h x e]
        for x in (query, key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1))
    )
    if query.is_cuda and query.dtype != torch.float32:
        window = (-1 if sliding_window is None else sliding_window - 1, 0)
        offsets, longest = cu_seq_lens_q, max_length_q
        run = varlen_kernel()
        out: Any = run(query, key, value, offsets, offsets, longest, longest, scale=scaling, window_size=window)
        return out[None], None
    return _row_by_row((query, key, value), cu_seq_lens_q.tolist(), scaling, sliding_window)[None], None


def _row_by_row(
    rows: tuple[Tensor, Tensor, Tensor], offsets: list[int], scaling: float | None, window: int | None
) -> Tensor:
    """The same without a variable-length kernel: [k x h x e]."""
    outputs = []
    for start, stop in pairwise(offsets):
        query, key, value = (x[start:stop].transpose(0, 1)[None] for x in rows)  # [1 x h x row x e]
        step = torch.arange(stop - start, device=query.device)
        distance = step[:, None] - step
        seen = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
        outputs.append(F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling)[0])
    return torch.cat([out.transpose(0, 1) for out in outputs])


def _varlen_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """Packed rows come without a mask and need none."""
    return None if attention_mask is None else sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


AttentionInterface.register(VARLEN, varlen_attention)
AttentionMaskInterface.register(VARLEN, _varlen_mask)
