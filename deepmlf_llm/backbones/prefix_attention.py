"""Attention of a few tokens over a kept prefix, ``attn_implementation="prefix"``: what ``auto`` takes on a CPU.

Fusion tokens read a text whose keys and values are kept and never trained. Other kernels know nothing of that: keys and
values of text and tokens are put side by side, repeated for each group of heads (grouped-query attention, arXiv
2305.13245), and their gradients are computed and thrown away. Here both parts stay where they are, the queries of a
group go together, and gradients are computed where somebody wants them.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from deepmlf_llm.errors import BaseModelError
from deepmlf_llm.modules.attention_kernels import HALF, written_out

PREFIX = "prefix"
TEXT_PREFIX = "text_prefix"  # keyword argument of a pass on a kept text


class Prefix(Protocol):
    """Has keys and values of what comes before a pass."""

    def of(self, layer_idx: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Of a layer [b x h x l x e]."""
        ...


def prefix_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    text_prefix: Prefix | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of tokens over a prefix and over one another. Without a prefix, all but half precision goes to
    transformers' sdpa.

    Notation: b batch, h key-value heads, g query heads of each, s tokens, l prefix, e head width.

    Args:
        module: the attention layer.
        query: [b x (h g) x s x e]
        key, value: of the tokens [b x h x s x e].
        attention_mask: True where a token may read [b x 1 x s x (l + s)]; None: l is 0, and it reads all before it and
            itself.
        dropout: of the weights, in training.
        scaling: of the scores; None: e^-0.5.
        text_prefix: keys and values of the prefix; None: l is 0.

    Raises:
        BaseModelError: the mask speaks of a prefix, and the layer did not hand one on.

    Returns:
        [b x s x (h g) x e], and no weights.
    """
    if text_prefix is None and attention_mask is not None and attention_mask.shape[-1] != key.shape[2]:
        raise BaseModelError(
            f"attn_implementation={PREFIX!r}: an attention layer has {key.shape[2]} keys and a mask for "
            f"{attention_mask.shape[-1]}; this family does not hand the argument {TEXT_PREFIX!r} on to its kernel: use "
            "'sdpa' or 'eager'"
        )
    if text_prefix is None and query.dtype not in HALF:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    if attention_mask is None:
        causal = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
        attention_mask = causal[None, None]
    parts = [(key, value)]
    if text_prefix is not None:
        parts.insert(0, text_prefix.of(module.layer_idx, key.dtype))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    dropout = dropout if module.training else 0.0
    return written_out(query, parts, attention_mask, scaling, dropout).contiguous(), None


def _always_a_mask(*args: Any, allow_is_causal_skip: bool = True, **kwargs: Any) -> Tensor | None:
    """Whoever reads one token gets a mask too: it tells of a prefix that did not arrive."""
    return sdpa_mask(*args, allow_is_causal_skip=False, **kwargs)


AttentionInterface.register(PREFIX, prefix_attention)
AttentionMaskInterface.register(PREFIX, _always_a_mask)
