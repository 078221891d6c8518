"""A decoder's own attention masks, with some of a row's last positions kept apart from one another.

transformers makes the masks, as each family has them (causal, sliding windows by layer), and takes them ready-made in
the place of a padding mask.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache
from transformers.masking_utils import create_masks_for_generate

from deepmlf_llm.backbones.interface import Decoder
from deepmlf_llm.backbones.packing import VARLEN
from deepmlf_llm.backbones.prefix_attention import PREFIX
from deepmlf_llm.errors import ConfigError

MASKED = ("sdpa", "eager", PREFIX, VARLEN)  # varlen hands padded rows to sdpa


def check_maskable(decoder: Decoder) -> None:
    """The attention kernel takes any mask.

    Raises:
        ConfigError: it takes none; flash-attn's kernels are causal, and FlexAttention has masks of its own.
    """
    kernel = decoder.body.config._attn_implementation
    if kernel not in MASKED:
        raise ConfigError(
            f"attn_implementation={kernel!r} takes no mask between fusion tokens, as token_topology='segregated' needs "
            f"one: expected one of {', '.join(map(repr, MASKED))}"
        )


def masks_among_last(decoder: Decoder, hidden: Tensor, mask: Tensor, reads: Tensor, cache: Cache | None) -> Any:
    """What the decoder's body takes as ``attention_mask``: a mask [b x 1 x s x (prefix + s)], or one a kind of layer.

    Args:
        decoder: the LM.
        hidden: what enters [b x s x d].
        mask: 1 where a position is real, cached prefix included [b x (prefix + s)].
        reads: True where one of the last n positions may read another [n x n]; before them nothing changes.
        cache: of the prefix, or to fill.

    Raises:
        ConfigError: see :func:`check_maskable`; or transformers makes no masks for this family.
    """
    check_maskable(decoder)
    first = mask.shape[1] - len(reads)

    def among(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query, key = query - first, key - first
        return (query < 0) | (key < 0) | reads[query.clamp(min=0), key.clamp(min=0)]

    masks: Any = create_masks_for_generate(
        config=decoder.body.config,
        inputs_embeds=hidden,
        attention_mask=mask,
        and_mask_function=among,
        **{decoder.cache_argument: cache},
    )
    if any(made is None or made.dim() != 4 for made in (masks.values() if isinstance(masks, dict) else [masks])):
        raise ConfigError(
            f"token_topology='segregated': transformers makes no masks for the layers of a {decoder.interface.family} "
            "decoder; set it to 'pooled'"
        )
    return masks
