"""AV encoder: sequences of audio and vision features -> one context Z for the fusion tokens.

DeepMLF section 3 (arXiv 2504.11082) and its published settings: per modality a bias-free projection to d_av times
sqrt(d_av), sinusoidal positions, dropout, pre-norm Transformer layers; pooled in time to at most T frames; the
modalities side by side through one Linear; a LayerNorm. Pooling takes contiguous windows of real frames (the published
code's strided reshape scrambles time), masks are obeyed everywhere, and any number of modalities goes through the same
code.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

MAP_ELEMENTS = 2**22  # of an attention map that is alive at once on a CPU: 16 MB in fp32


@dataclass
class AVContext:
    """Z and what belongs to it.

    Args:
        frames: Z [b x t x d_av], zero where not real.
        mask: True where a frame of Z is real [b x t].
    """

    frames: Tensor
    mask: Tensor

    def mean(self) -> Tensor:
        """Mean over real frames [b x d_av]; zero for a row without any."""
        count = self.mask.sum(dim=1, keepdim=True).clamp(min=1)
        return (self.frames * self.mask[..., None]).sum(dim=1) / count


def pool_time(x: Tensor, mask: Tensor, lengths_out: Tensor, frames_out: int) -> Tensor:
    """Means over contiguous windows of real frames, as adaptive average pooling over each row's own length.

    Window i of a row with ``length`` real frames covers those of rank ``floor(i length / out)`` to
    ``ceil((i + 1) length / out) - 1``; where ``out`` exceeds ``length``, frames repeat.

    Args:
        x: [b x t x d].
        mask: True where a frame is real [b x t].
        lengths_out: windows per row [b], each at most ``frames_out``.
        frames_out: number of windows computed; those past a row's own count are zero.

    Returns:
        [b x frames_out x d]
    """
    length = mask.sum(dim=1)[:, None]  # [b x 1]
    out = lengths_out.clamp(min=1)[:, None]
    window = torch.arange(frames_out, device=x.device)[None]
    start = (window * length).div(out, rounding_mode="floor")
    stop = -((-(window + 1) * length).div(out, rounding_mode="floor"))
    rank = (mask.cumsum(dim=1) - 1)[:, None]  # [b x 1 x t]
    inside = mask[:, None] & (rank >= start[..., None]) & (rank < stop[..., None]) & (window < out)[..., None]
    sums = inside.to(x.dtype) @ x.masked_fill(~mask[..., None], 0.0)  # [b x frames_out x d]
    return sums / (stop - start).clamp(min=1)[..., None]


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """[sines | cosines] of ``position * 10000^(-i / (width / 2 - 1))``: floating [..] -> [.. x width], from 1."""
    half = width // 2
    index = torch.arange(half, device=positions.device, dtype=positions.dtype)
    rate = torch.exp(-math.log(10000.0) / max(half - 1, 1) * index)
    angle = positions[..., None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def self_attention(query: Tensor, key: Tensor, value: Tensor, attend: Tensor, dropout: float) -> Tensor:
    """Scaled dot-product attention whose maps are never kept; ``dropout`` is theirs.

    PyTorch has a kernel for that on CUDA. On a CPU it has one without dropout only, and would write and keep three maps
    [b x h x t x t] of each layer: gigabytes over 500 frames. There a few rows at a time get theirs, and once more in
    the backward pass.

    Args:
        query, key, value: [b x h x t x e].
        attend: True where a frame may be read [b x t].
        dropout: probability; 0 outside training.
    """
    if dropout == 0.0 or query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=attend[:, None, None, :], dropout_p=dropout)
    # One more coordinate of the keys, read by all, says which are masked: cheaper than going over the map for it.
    query = F.pad(query / math.sqrt(query.shape[-1]), (0, 1), value=1.0)
    key = torch.cat([key, torch.where(attend, 0.0, -1e9)[:, None, :, None].expand(*key.shape[:3], 1).to(key)], dim=-1)
    rows = max(1, MAP_ELEMENTS // (query.shape[1] * query.shape[2] ** 2))
    parts = [
        checkpoint(_attention_with_dropout, *part, dropout, use_reentrant=False)
        for part in zip(*(x.split(rows) for x in (query, key, value)), strict=True)
    ]
    return torch.cat(parts)


def _attention_with_dropout(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    weights = (query @ key.mT).softmax(dim=-1)
    # Sixteen random bits an element: a fifth of the time of bernoulli_, which takes half of a layer's.
    dropped = round(dropout * 2**16)
    bits = torch.empty(-(-weights.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    keep = (bits[: weights.numel()] >= dropped - 2**15).view(weights.shape)
    return (weights * keep) @ (value / (1 - dropped / 2**16))


class EncoderLayer(nn.Module):
    """A pre-norm Transformer encoder layer whose mask may be empty in a row (an absent modality)."""

    def __init__(self, width: int, num_heads: int, ffw_width: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.ffw_norm = nn.LayerNorm(width)
        self.ffw = nn.Sequential(
            nn.Linear(width, ffw_width), nn.GELU(), nn.Dropout(dropout), nn.Linear(ffw_width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, attend: Tensor) -> Tensor:
        """[b x t x w] -> [b x t x w]; ``attend``: True where a frame may be read [b x t]."""
        heads = self.query_key_value(self.attention_norm(x)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each [b x h x t x e]
        drop = self.dropout.p if self.training else 0.0
        read = self_attention(query, key, value, attend, drop)
        x = x + self.dropout(self.output(read.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.ffw(self.ffw_norm(x)))


class ModalityEncoder(nn.Module):
    """One modality's frames [b x t x d_in] -> [b x t x d_av]."""

    def __init__(
        self,
        dim: int,
        width: int,
        num_layers: int,
        num_heads: int,
        ffw_width: int,
        dropout: float,
        input_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.width = width
        self.input_dropout = nn.Dropout(input_dropout)
        self.projection = nn.Linear(dim, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(EncoderLayer(width, num_heads, ffw_width, dropout) for _ in range(num_layers))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``mask``: True where a frame is real [b x t]. Positions count real frames only."""
        # Padding may hold anything, NaN included; it must not reach a sum, not even times zero.
        x = x.masked_fill(~mask[..., None], 0.0)
        x = self.projection(self.input_dropout(x)) * math.sqrt(self.width)
        # At least fp32: bf16, as autocast has it here, cannot count beyond 256.
        positions = mask.cumsum(dim=1).to(torch.promote_types(x.dtype, torch.float32))
        x = self.dropout(x + sinusoids(positions, self.width).to(x.dtype))
        attend = mask | ~mask.any(dim=1, keepdim=True)  # a softmax over nothing is NaN
        for layer in self.layers:
            x = layer(x, attend)
        return x


class AVEncoder(nn.Module):
    """E_AV over any modalities: ``Z = LayerNorm(Linear([pool(E_1(X_1)) ; pool(E_2(X_2)) ; ...]))``.

    Args:
        dims: frame width of each modality, by name, in order.
        width: d_av.
        max_frames: T. A row gets ``min(T, frames of its longest modality)`` windows; shorter modalities spread over
            them.
        The rest as in :class:`ModalityEncoder`.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        width: int = 30,
        num_layers: int = 3,
        num_heads: int = 6,
        ffw_width: int = 120,
        dropout: float = 0.1,
        input_dropout: float = 0.0,
        max_frames: int = 50,
    ) -> None:
        super().__init__()
        self.max_frames = max_frames
        self.encoders = nn.ModuleDict(
            {
                name: ModalityEncoder(dim, width, num_layers, num_heads, ffw_width, dropout, input_dropout)
                for name, dim in dims.items()
            }
        )
        self.join = nn.Linear(width * len(dims), width)
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Mapping[str, tuple[Tensor, Tensor]]) -> AVContext:
        """``features``: name -> (frames [b x t_m x d_m], mask [b x t_m]), every modality of ``dims``."""
        lengths = torch.stack([features[name][1].sum(dim=1) for name in self.encoders])  # [modalities x b]
        lengths_out = lengths.amax(dim=0).clamp(max=self.max_frames)  # [b]
        frames_out = min(self.max_frames, max(features[name][1].shape[1] for name in self.encoders))
        pooled = [
            pool_time(encoder(*features[name]), features[name][1], lengths_out, frames_out)
            for name, encoder in self.encoders.items()
        ]
        mask = torch.arange(frames_out, device=lengths_out.device) < lengths_out[:, None]
        frames = self.norm(self.join(torch.cat(pooled, dim=-1)))
        return AVContext(frames * mask[..., None], mask)
