"""The yardstick's AV encoder: all padded frames are pooled in time, then one small Transformer a modality over the
windows, attention maps written out.

The published order and shape (arXiv 2504.11082): 500 raw frames come in, 50 pooled ones go through the layers; width
30, 3 pre-norm layers, 6 heads, FFW 120, exact GELU, dropout 0.1. Masks, positions and pooling are the method's. See
`published_layout.py` for what a yardstick is.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropout: float = 0.0) -> Tensor:
    """Attention with its map written out; query, key, value [b x h x s x e], bias [b x 1 x 1 x t]."""
    scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-1, -2)
    scores += bias  # in place: the published code has no mask here, and ours must not cost more
    return F.dropout(scores.softmax(dim=-1), dropout) @ value


class EncoderLayer(nn.Module):
    """Pre-norm Transformer encoder layer, exact GELU."""

    def __init__(self, width: int, heads: int, ffw: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.p = heads, dropout
        self.norm_attention, self.norm_ffw = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, ffw), nn.Linear(ffw, width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        p = self.p if self.training else 0.0
        y = self.norm_attention(x)
        query, key, value = (
            proj(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for proj in (self.query, self.key, self.value)
        )
        read = self.output(attend(query, key, value, bias, p).transpose(1, 2).flatten(2))
        x = x + F.dropout(read, p)
        y = F.dropout(F.gelu(self.up(self.norm_ffw(x))), p)
        return x + F.dropout(self.down(y), p)


class ModalityEncoder(nn.Module):
    """One modality: all its padded frames pooled in time to ``frames`` windows, which then go through the layers."""

    def __init__(self, dim: int, frames: int, width: int = 30, layers: int = 3, heads: int = 6, ffw: int = 120) -> None:
        super().__init__()
        self.width, self.frames, self.dropout = width, frames, nn.Dropout(0.1)
        self.project = nn.Linear(dim, width, bias=False)
        self.layers = nn.ModuleList(EncoderLayer(width, heads, ffw, 0.1) for _ in range(layers))

    def forward(self, features: Tensor, lengths: Tensor, windows: Tensor) -> Tensor:
        """Features [b x t x f], lengths [b] and windows wanted [b] -> [b x T x c], zero past the windows wanted."""
        pooled = pooling_weights(lengths, windows, features.shape[1], self.frames) @ features
        x = self.project(pooled) * math.sqrt(self.width)
        x = self.dropout(x + sinusoids(self.frames, self.width, features.device))
        heard = (torch.arange(self.frames, device=x.device) < windows[:, None]) & (lengths > 0)[:, None]
        bias = key_bias(heard | ~heard.any(dim=1, keepdim=True))  # a softmax over nothing is NaN
        for layer in self.layers:
            x = layer(x, bias)
        return x * heard[..., None]


def pooling_weights(lengths: Tensor, windows: Tensor, frames: int, most: int) -> Tensor:
    """Adaptive average pooling, a matrix [b x most x frames]: window i of w covers frames i r / w .. (i + 1) r / w."""
    index = torch.arange(most, device=lengths.device)
    length, count = lengths[:, None, None], windows[:, None, None]
    low, high = index[:, None] * length, (index[:, None] + 1) * length  # in units of 1 / w frames
    frame = torch.arange(frames, device=lengths.device) * count
    inside = (frame + count > low) & (frame < high) & (index[:, None] < count)  # [b x most x frames]
    return inside.float() / inside.sum(dim=-1, keepdim=True).clamp(min=1)


def sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    """[sines | cosines] of positions from 1, rate 10000^(-i / (width / 2 - 1)); [length x width]."""
    rate = torch.exp(torch.arange(width // 2, device=device) * (-math.log(10000.0) / (width // 2 - 1)))
    angle = torch.arange(1, length + 1, device=device)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def key_bias(mask: Tensor) -> Tensor:
    """0 where a key is real, -inf elsewhere: [b x t] -> [b x 1 x 1 x t]."""
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -math.inf)[:, None, None, :]
