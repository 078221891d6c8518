"""Gated cross-attention (GCA): how fusion tokens hear and see.

First half of an MM Block, DeepMLF section 3 (arXiv 2504.11082):
``X_f <- X_f + g(a) * GCA(q=Norm(X_f), kv=Z)``. The norm and the residual belong to the MM Block; the weights of all
blocks' keys and values lie in one projection, in the FusionStack.
"""

import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn

from deepmlf_llm.modules.context_reading import ContextReader
from deepmlf_llm.modules.precision import at_least_fp32

GATES: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "none": torch.ones_like}


class Gate(nn.Module):
    """A learnable ``a`` through a squashing function, one scalar (paper) or one a channel; computed in fp32 (fp64
    beside an fp64 LM).

    Args:
        kind: ``"sigmoid"`` (the paper: opens at 0.5), ``"tanh"`` (Flamingo: starts shut) or
            ``"none"`` (always 1; the parameter stays, frozen, so that files keep one layout).
        init: where ``a`` starts; 0 in the paper. Gates that start shut let a model begin without what they gate.
        channels: 1, or the width of what is gated.

    ``shut = True`` forces the factor to exactly 0 in the thread that says so: the injection probe shows with it that
    nothing else has changed, while other threads may predict.

    Raises:
        ValueError: unknown ``kind``; the message names the known ones.
    """

    def __init__(self, kind: str = "sigmoid", init: float = 0.0, channels: int = 1) -> None:
        super().__init__()
        if kind not in GATES:
            raise ValueError(f"gate={kind!r}: expected one of {', '.join(map(repr, GATES))}")
        self.kind = kind
        self._shut_in: dict[int, bool] = {}  # threads
        self.channels = channels
        # One element, not a scalar tensor: DeepSpeed broadcasts parameters as bytes, and a scalar has no such view.
        self.alpha = nn.Parameter(torch.full((channels,), float(init)), requires_grad=kind != "none")

    @property
    def shut(self) -> bool:
        """Whether this thread has shut it."""
        return bool(self._shut_in) and threading.get_ident() in self._shut_in

    @shut.setter
    def shut(self, shut: bool) -> None:
        if shut:
            self._shut_in[threading.get_ident()] = True
        else:
            self._shut_in.pop(threading.get_ident(), None)

    def forward(self) -> Tensor:
        """The factor, a scalar, or one a channel [d]."""
        dtype = at_least_fp32(self.alpha)
        squash = torch.zeros_like if self.shut else GATES[self.kind]
        factor = squash(self.alpha.to(dtype))
        return factor[0] if self.channels == 1 else factor


class GatedCrossAttention(nn.Module):
    """Multi-head cross-attention to the audiovisual context, gated; from fusion tokens in the paper.

    Notation used for tensor shapes:
        - b: batch size
        - n: number of positions that query
        - t: number of audiovisual frames, padding included
        - d: LM width
        - h, e: attention heads, width of one head

    Args:
        width: d.
        num_heads: h.
        head_width: e; default ``width // num_heads``. A narrow inner width is what keeps a block small on a wide LM.
        gate: its gate, or the kind of one; see :class:`Gate`.
        dropout: on the attention weights and on the output, in training; 0.1 in the authors' code.

    Raises:
        ValueError: ``width`` is not a multiple of ``num_heads`` and no ``head_width`` is given.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        head_width: int | None = None,
        gate: Gate | str = "sigmoid",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if head_width is None and width % num_heads:
            raise ValueError(
                f"width={width} is not a multiple of num_heads={num_heads}: choose another, or set head_width"
            )
        self.num_heads = num_heads
        self.inner_width = num_heads * (head_width or width // num_heads)
        self.mm_query = nn.Linear(width, self.inner_width, bias=False)
        self.mm_output = nn.Linear(self.inner_width, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.gate = Gate(gate) if isinstance(gate, str) else gate

    def forward(self, tokens: Tensor, reader: ContextReader, context_mask: Tensor) -> Tensor:
        """What the context adds to the positions that query it, to be summed onto the residual stream.

        Args:
            tokens: normalised states of these positions [b x n x d].
            reader: of Z, the context.
            context_mask: True where a frame may be read, by all tokens [b x t] or by each [b x n x t]. Where there
                is none, the modality is absent: exactly 0 is added, with finite gradients everywhere.

        Returns:
            The gated update [b x n x d].
        """
        if context_mask.dim() == 2:
            context_mask = context_mask[:, None]  # [b x 1 x t]
        present = context_mask.any(dim=-1, keepdim=True)  # [b x (1 or n) x 1]
        # A softmax over nothing is NaN, also backwards: let absent rows attend, then drop what they read.
        # No branch on data: every rank runs the same modules, whatever its batch holds (ZeRO-3 hangs otherwise).
        attend = context_mask | ~present  # [b x (1 or n) x t]

        query = self.mm_query(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [b x h x n x e]
        drop = self.dropout.p if self.training else 0.0
        read = reader.attend(query, attend[:, None], drop)  # [b x n x h x e]
        update = self.dropout(self.mm_output(read.flatten(2)))  # [b x n x d]
        return self.gate() * update * present
