"""Running a frozen decoder in parts: the text once, the fusion tokens on top of it.

A causal LM's text never reads what comes after it. So the text's keys and values can be computed once, without a graph,
and kept; the tokens that follow then cost only themselves. Nothing here knows what those tokens are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from deepmlf_llm.backbones.interface import Decoder, layer_output
from deepmlf_llm.backbones.masking import masks_among_last
from deepmlf_llm.backbones.packing import PackedRows
from deepmlf_llm.backbones.prefix_attention import PREFIX, TEXT_PREFIX
from deepmlf_llm.backbones.segment import ENTERING, segment


@dataclass
class TextStream:
    """What the frozen LM makes of the text, up to a depth.

    Notation: b batch, l text tokens (left-padded), h key-value heads, e head width, d LM width.

    Args:
        keys_values: of the layers from ``lowest`` on and below the depth, each (keys, values) [b x h x l x e]; padded
            positions hold anything finite.
        states: [b x l x d] after layer ``depth - 1``; read to the end: the last text token's state after the final
            norm, of each noted layer and of the last [b x (r + 1) x d].
        texts: the token ids of each row, where the stream comes out of a cache.
        lowest: layer of the first keys and values; a cache keeps no more than is read.
    """

    keys_values: list[tuple[Tensor, Tensor]]
    states: Tensor
    texts: list[tuple[int, ...]] | None = None
    lowest: int = 0

    def prefix(self, length: int) -> PrefixCache:
        """Its keys and values for what follows ``length`` positions of text."""
        return PrefixCache(self.keys_values, length, self.lowest)


class PrefixCache(Cache):
    """Read-only keys and values of a prefix: ``update`` returns prefix and news side by side and stores nothing.

    Args:
        keys_values: of layer ``lowest`` and those above it.
        length: of the prefix.
        lowest: layers below are not run.
    """

    def __init__(self, keys_values: Sequence[tuple[Tensor, Tensor]], length: int, lowest: int = 0) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self.keys_values = dict(enumerate(keys_values, lowest))
        self.length = length

    def of(self, layer_idx: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer [b x h x l x e]."""
        keys, values = self.keys_values[layer_idx]
        return keys.to(dtype), values.to(dtype)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        keys, values = self.of(layer_idx, key_states.dtype)
        return torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.length

    def get_mask_sizes(self, query_length: Any, layer_idx: int) -> tuple[int, int]:
        return self.length + _count(query_length), 0


class PrefixApart(PrefixCache):
    """The same for a kernel that takes the prefix by itself (:meth:`of`): ``update`` returns the news alone."""

    def __init__(self, prefix: PrefixCache) -> None:
        super().__init__((), prefix.length)
        self.keys_values = prefix.keys_values

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        return key_states, value_states


class RecordingCache(Cache):
    """Hands keys and values on, and to ``record`` (layer, keys, values [b x h x l x e]); keeps nothing itself."""

    def __init__(self, record: Callable[[int, Tensor, Tensor], None]) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self.record = record

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        self.record(layer_idx, key_states, value_states)
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: Any, layer_idx: int) -> tuple[int, int]:
        return _count(query_length), 0


def _count(query_length: Any) -> int:
    """transformers passed cache positions here before it passed their number."""
    return query_length if isinstance(query_length, int) else int(query_length.shape[0])


def positions(mask: Tensor) -> Tensor:
    """Position of each token [b x s]: real tokens count from 0, so padding shifts nothing."""
    return (mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def run_layers(
    decoder: Decoder,
    hidden: Tensor,
    mask: Tensor,
    first: int = 0,
    last: int | None = None,
    cache: Cache | None = None,
    reads: Tensor | None = None,
    **to_layers: Any,
) -> Tensor:
    """Runs layers ``first .. last - 1`` of a decoder, with all its own masks and rotary tables.

    Args:
        decoder: the LM.
        hidden: input embeddings (``first=0``) or states after layer ``first - 1`` [b x s x d].
        mask: 1 where a token is real, cached prefix included [b x (prefix + s)].
        first, last: range of layers; ``last=None`` runs to the end, final norm included.
        cache: keys and values of the prefix, or a cache to fill. With one, activations are kept, whatever was asked:
            where it is used, they are small (tokens on a prefix) or none (no graph).
        reads: True where one of the last n positions may read another [n x n], as far as the LM's own mask lets it;
            None: as that has it.
        to_layers: keyword arguments that every layer receives, and its hooks see.

    Raises:
        ConfigError: ``reads`` with an attention kernel that takes no mask.
        BaseModelError: ``attn_implementation="prefix"`` in a family that it does not fit.

    Returns:
        [b x s x d] after layer ``last - 1``, or after the final norm.
    """
    body = segment(decoder, first, last, keep_activations=cache is not None)
    if isinstance(cache, PrefixCache) and decoder.body.config._attn_implementation == PREFIX:
        to_layers[TEXT_PREFIX] = cache = PrefixApart(cache)
    if first > 0:
        to_layers[ENTERING] = hidden
    out = body(
        inputs_embeds=hidden,
        attention_mask=mask if reads is None else masks_among_last(decoder, hidden, mask, reads, cache),
        position_ids=positions(mask)[:, -hidden.shape[1] :],
        use_cache=cache is not None,
        **{decoder.cache_argument: cache},
        **_unrecorded(decoder),
        **to_layers,
    )
    return layer_output(out)


def _unrecorded(decoder: Decoder) -> dict[str, bool]:
    """Whoever records states and attentions (``config.output_hidden_states``) wants those of whole passes, and the
    hooks for it would be set again for each segment."""
    names = ("output_hidden_states", "output_attentions")
    return {name: False for name in names if getattr(decoder.body.config, name, False)}


def run_packed(
    decoder: Decoder,
    hidden: Tensor,
    mask: Tensor,
    rows: PackedRows,
    first: int = 0,
    last: int | None = None,
    **to_layers: Any,
) -> Tensor:
    """As :func:`run_layers` without a prefix, over rows without padding, for kernels that take them so.

    Args:
        hidden: input embeddings, or states after layer ``first - 1`` [b x s x d].
        mask: 1 where a position is real [b x s].
        rows: of ``mask``.
        first, last, to_layers: as for :func:`run_layers`.

    Returns:
        [b x s x d], zero where padded.
    """
    packed = rows.pack(hidden)
    if first > 0:
        to_layers[ENTERING] = packed
    out = segment(decoder, first, last)(
        inputs_embeds=packed,
        attention_mask=None,
        position_ids=rows.pack(positions(mask)),
        use_cache=False,
        **rows.kernel_arguments(),
        **to_layers,
    )
    return rows.unpack(layer_output(out))


@torch.no_grad()
def read_text(
    decoder: Decoder, embeddings: Tensor, mask: Tensor, depth: int | None = None, notes: Sequence[int] = ()
) -> TextStream:
    """The text through the layers below ``depth``, without a graph.

    Args:
        embeddings: of the text [b x l x d], left-padded.
        mask: 1 where a token is real [b x l].
        depth: number of layers to run; None: all, and the final norm.
        notes: layers, ascending, after which the last token's state is wanted too, in a pass to the end.
    """
    caches: list[DynamicCache] = []

    def fresh() -> DynamicCache:
        caches.append(DynamicCache())
        return caches[-1]

    states = read_noting(decoder, embeddings, mask, depth, notes, fresh)
    kept = [layer for cache in caches for layer in cache.layers if layer.keys is not None]
    return TextStream([(layer.keys, layer.values) for layer in kept], states)


def read_noting(
    decoder: Decoder,
    embeddings: Tensor,
    mask: Tensor,
    depth: int | None,
    notes: Sequence[int],
    fresh: Callable[[], Cache],
) -> Tensor:
    """States as in :class:`TextStream` of text that is read as in :func:`read_text`.

    Args:
        embeddings, mask, depth, notes: as there.
        fresh: gives a cache for the keys and values of some layers. One a span: the LM makes its masks by how long the
            lowest layer of a cache is.
    """
    states, hidden, first = [], embeddings, 0
    for layer in notes if depth is None else ():
        hidden = run_layers(decoder, hidden, mask, first, layer + 1, fresh())
        states.append(decoder.final_norm(hidden[:, -1:]))
        first = layer + 1
    hidden = run_layers(decoder, hidden, mask, first, depth, fresh())
    return hidden if depth is not None else torch.cat([*states, hidden[:, -1:]], dim=1)
