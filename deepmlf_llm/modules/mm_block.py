"""MM Block: what DeepMLF puts after an LM block.

DeepMLF section 3 (arXiv 2504.11082), on the LM block's output ``H~ = [X~_t ; X~_f]``:

1. ``X_f = X~_f + g(a1) * GCA(q=Norm(X~_f), kv=Z)``: fusion tokens read the audiovisual context;
2. ``H = H + g(a2) * FFW(Norm(H))`` over ``H = [X~_t ; X_f]`` (``ffw_scope="joint"``, the paper), or over ``X_f`` alone
   (``"fusion"``: the text stays what the frozen LM makes of it, and need be computed only once).

Ablations: the text queries Z, as in Flamingo (arXiv 2204.14198), or text and fusion tokens do; no second equation
(``ffw_scope="none"``). Where nothing is heard or seen there is no first one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from deepmlf_llm.modules.context_reading import ContextReader
from deepmlf_llm.modules.cross_attention import Gate, GatedCrossAttention
from deepmlf_llm.modules.feed_forward import FeedForward


class Rows(Protocol):
    """How the rows of a batch lie in hidden states: padded to one length, or one after the other without padding."""

    def take_last(self, hidden: Tensor, count: int) -> Tensor:
        """The last ``count`` positions of each row [b x count x d]."""

    def put_last(self, hidden: Tensor, last: Tensor) -> Tensor:
        """``hidden`` with the last positions of each row replaced by ``last`` [b x count x d]."""

    def unpack(self, x: Tensor) -> Tensor:
        """Hidden states as rows that are padded on the left to one length [b x s x d]."""

    def pack(self, x: Tensor) -> Tensor:
        """The inverse: [b x s x d] as hidden states lie."""


class PaddedRows:
    """Rows padded on the left to one length [b x s x d]."""

    def take_last(self, hidden: Tensor, count: int) -> Tensor:
        return hidden[:, -count:]

    def put_last(self, hidden: Tensor, last: Tensor) -> Tensor:
        return torch.cat([hidden[:, : -last.shape[1]], last], dim=1)

    def unpack(self, x: Tensor) -> Tensor:
        return x

    def pack(self, x: Tensor) -> Tensor:
        return x


PADDED = PaddedRows()

Update = Callable[[Tensor], Tensor]


def at_tokens(update: Update, hidden: Tensor, num_tokens: int, rows: Rows) -> Tensor:
    """``hidden`` with its fusion tokens [b x n x d] replaced by their ``update``."""
    return rows.put_last(hidden, update(rows.take_last(hidden, num_tokens)))


def at_text(update: Update, hidden: Tensor, num_tokens: int, rows: Rows) -> Tensor:
    """``hidden`` with its text [b x l x d] replaced by the ``update`` of it."""
    padded = rows.unpack(hidden)
    return rows.pack(torch.cat([update(padded[:, :-num_tokens]), padded[:, -num_tokens:]], dim=1))


def at_text_and_tokens(update: Update, hidden: Tensor, num_tokens: int, rows: Rows) -> Tensor:
    """The ``update`` of whole rows [b x s x d]."""
    return rows.pack(update(rows.unpack(hidden)))


def everywhere(update: Update, hidden: Tensor, num_tokens: int, rows: Rows) -> Tensor:
    """The ``update`` of all positions, for what goes position by position, however rows lie."""
    return update(hidden)


QUERIES = {"tokens": at_tokens, "text": at_text, "both": at_text_and_tokens}
FFW_SCOPES = {"joint": everywhere, "fusion": at_tokens, "none": at_tokens}


class MMBlock(nn.Module):
    """Gated cross-attention, then a gated FFW.

    Notation used for tensor shapes:
        - b: batch size
        - s: sequence length, text and fusion tokens
        - n: number of fusion tokens, always the last of the sequence
        - d: LM width
        - t, h, e: audiovisual frames, heads of GCA, width of one head

    Args:
        attention_norm, ffw_norm: norms of the decoder's kind, own weights.
        cross_attention: GCA with its gate a1; None, as its norm: there is no context to read.
        ffw: see :class:`FeedForward`; None, as its norm and its gate: ``ffw_scope="none"``.
        ffw_gate: the FFW's gate a2.
        ffw_scope: ``"joint"``, ``"fusion"`` or ``"none"``.
        queries: what queries the context: ``"tokens"``, ``"text"`` or ``"both"``.
    """

    def __init__(
        self,
        attention_norm: nn.Module | None,
        cross_attention: GatedCrossAttention | None,
        ffw_norm: nn.Module | None,
        ffw: FeedForward | None,
        ffw_gate: Gate | None,
        ffw_scope: str = "joint",
        queries: str = "tokens",
    ) -> None:
        super().__init__()
        self.attention_norm: Any = attention_norm
        self.cross_attention: Any = cross_attention
        self.ffw_norm: Any = ffw_norm
        self.ffw: Any = ffw
        self.ffw_gate: Any = ffw_gate
        self._read_at = QUERIES[queries]
        self._feed_at = FFW_SCOPES[ffw_scope]

    @property
    def text_queries(self) -> bool:
        """Whether the text queries the context, too or alone."""
        return self._read_at is not at_tokens

    def gates(self) -> dict[str, Gate]:
        gates = {"gca": None if self.cross_attention is None else self.cross_attention.gate, "ffw": self.ffw_gate}
        return {name: gate for name, gate in gates.items() if gate is not None}

    def forward(
        self,
        hidden: Tensor,
        reader: ContextReader | None,
        context_mask: Tensor | None,
        num_tokens: int,
        rows: Rows = PADDED,
    ) -> Tensor:
        """[b x s x d] -> [b x s x d], in the dtype of ``hidden``.

        Args:
            hidden: output of the LM block; the last ``num_tokens`` of each row are fusion tokens.
            reader: this block's, of Z; None where nothing is heard or seen.
            context_mask: True where a frame may be read, by all that query [b x t] or by each fusion token [b x n x t];
                None without a context.
            num_tokens: n.
            rows: how rows lie in ``hidden``.
        """
        if reader is None or context_mask is None:
            return self._feed_at(self.feed_forward, hidden, num_tokens, rows)
        read = partial(self.read, reader=reader, context_mask=context_mask)
        if self.ffw is None:
            return self._read_at(read, hidden, num_tokens, rows)
        if self._read_at is self._feed_at:  # rows are taken apart and put together once
            return self._feed_at(lambda x: self.feed_forward(read(x)), hidden, num_tokens, rows)
        return self._feed_at(self.feed_forward, self._read_at(read, hidden, num_tokens, rows), num_tokens, rows)

    def read(self, tokens: Tensor, reader: ContextReader, context_mask: Tensor) -> Tensor:
        """First equation: what queries [b x n x d] (the fusion tokens, in the paper) after reading the context."""
        with _half_precision(tokens) as masters:
            update: Tensor = self.cross_attention(self.attention_norm(tokens.to(masters)), reader, context_mask)
        return tokens + update.to(tokens.dtype)

    def feed_forward(self, hidden: Tensor) -> Tensor:
        """Second equation, over any rows [b x s x d]."""
        with _half_precision(hidden) as masters:
            update = self.ffw_gate() * self.ffw(self.ffw_norm(hidden.to(masters)))
        return hidden + update.to(hidden.dtype)


@contextmanager
def _half_precision(hidden: Tensor) -> Iterator[torch.dtype]:
    """The frozen LM may live in bf16; the masters here are fp32. Autocast meets at this boundary; gives their dtype."""
    half = hidden.dtype in (torch.bfloat16, torch.float16)
    with torch.autocast(hidden.device.type, dtype=hidden.dtype if half else torch.bfloat16, enabled=half):
        yield torch.float32 if half else hidden.dtype
