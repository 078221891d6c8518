"""AV encoder: sequences of audio and vision features -> one context Z for the fusion tokens.

DeepMLF section 3 (arXiv 2504.11082) and its published settings, in the order of its authors' code: per modality the raw
frames are pooled in time to at most T; optional BatchNorm; a bias-free projection to d_av times sqrt(d_av), sinusoidal
positions (of pooled frames), dropout, pre-norm Transformer layers; then the modalities side by side through one Linear;
a LayerNorm. Masks are applied everywhere, and any number of modalities goes through the same code.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deepmlf_llm.modules.attention_kernels import leave_out_cudnn_attention
from deepmlf_llm.modules.frame_norm import FRAME_NORMS
from deepmlf_llm.modules.pooling import pool_time
from deepmlf_llm.modules.precision import at_least_fp32

MAP_ELEMENTS = 2**22  # of an attention map that is alive at once on a CPU: 16 MB in fp32
KEPT_ELEMENTS = 2**20  # of one that is kept for the backward pass there, 4 MB thrice; a larger one is made again


@dataclass
class AVContext:
    """Z and what belongs to it.

    Args:
        frames: Z [b x t x d_av], zero where not real.
        mask: True where a frame of Z is real [b x t].
        parts: modality -> its own frames E_m before they are joined, in the same windows as those of Z.
    """

    frames: Tensor
    mask: Tensor
    parts: Mapping[str, "AVContext"] = field(default_factory=dict)

    def mean(self) -> Tensor:
        """Mean over real frames [b x d_av]; zero for a row without any."""
        count = self.mask.sum(dim=1, keepdim=True).clamp(min=1)
        return (self.frames * self.mask[..., None]).sum(dim=1) / count


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """[sines | cosines] of ``position * 10000^(-i / (width / 2 - 1))``: floating [..] -> [.. x width], from 1."""
    half = width // 2
    index = torch.arange(half, device=positions.device, dtype=positions.dtype)
    rate = torch.exp(-math.log(10000.0) / max(half - 1, 1) * index)
    angle = positions[..., None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def self_attention(query: Tensor, key: Tensor, value: Tensor, attend: Tensor, dropout: float) -> Tensor:
    """Scaled dot-product attention whose large maps are never kept; ``dropout`` is theirs.

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
    elements = query.shape[1] * query.shape[2] ** 2  # of a row's maps
    if query.is_cpu and len(query) * elements <= KEPT_ELEMENTS:
        return _attention_with_dropout(query, key, value, dropout)
    rows = max(1, MAP_ELEMENTS // elements)
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
    # In the weights' dtype at once: else each product casts it anew.
    keep = (bits[: weights.numel()] >= dropped - 2**15).view(weights.shape).to(weights.dtype)
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
    """One modality's frames, pooled or raw [b x t x d_in] -> [b x t x d_av].

    Args:
        dim: width of one frame.
        width: d_av.
        num_layers, num_heads, ffw_width: of the Transformer layers.
        dropout: after the positions, on attention and on both residuals.
        input_dropout: on the frames, in front of the projection.
        feature_norm: ``"none"``, or ``"batch"``: BatchNorm of the frames, over real ones.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        num_layers: int,
        num_heads: int,
        ffw_width: int,
        dropout: float,
        input_dropout: float = 0.0,
        feature_norm: str = "none",
    ) -> None:
        super().__init__()
        self.width = width
        self.feature_norm = FRAME_NORMS[feature_norm](dim)
        self.input_dropout = nn.Dropout(input_dropout)
        self.projection = nn.Linear(dim, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(EncoderLayer(width, num_heads, ffw_width, dropout) for _ in range(num_layers))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``mask``: True where a frame is real [b x t]. Positions count real frames only."""
        # Padding may hold anything, NaN included; it must not reach a sum, not even times zero.
        x = self.feature_norm(x.masked_fill(~mask[..., None], 0.0), mask)
        x = self.projection(self.input_dropout(x)) * math.sqrt(self.width)
        # At least fp32: bf16, as autocast has it here, cannot count beyond 256.
        positions = mask.cumsum(dim=1).to(at_least_fp32(x))
        x = self.dropout(x + sinusoids(positions, self.width).to(x.dtype))
        attend = mask | ~mask.any(dim=1, keepdim=True)  # a softmax over nothing is NaN
        for layer in self.layers:
            x = layer(x, attend)
        return x


def encode_pooled(encoder: ModalityEncoder, x: Tensor, mask: Tensor, windows: Tensor, pooled: Tensor) -> Tensor:
    """The authors' order: raw frames are pooled, then encoded; attention costs (t / T)^2 times less.

    Args:
        encoder: of this modality.
        x: its raw frames [b x t x d_in].
        mask: True where they are real [b x t].
        windows: that each row is pooled to [b].
        pooled: True where a window is one of its row's [b x T].

    Returns:
        [b x T x d_av], zero where the row has no frame of this modality.
    """
    with torch.autocast(x.device.type, enabled=False):  # raw features are averaged as exactly as they come
        means = pool_time(x, mask, windows, pooled.shape[1])
    heard = pooled & mask.any(dim=1, keepdim=True)
    return encoder(means, heard).masked_fill(~heard[..., None], 0.0)


def pool_encoded(encoder: ModalityEncoder, x: Tensor, mask: Tensor, windows: Tensor, pooled: Tensor) -> Tensor:
    """All raw frames are encoded, then pooled, as adapters of format 1 were trained. See :func:`encode_pooled`."""
    return pool_time(encoder(x, mask), mask, windows, pooled.shape[1])


POOLING: dict[str, Callable[[ModalityEncoder, Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "before": encode_pooled,
    "after": pool_encoded,
}


class AVEncoder(nn.Module):
    """E_AV over any modalities: ``Z = LayerNorm(Linear([E_1(pool(X_1)) ; E_2(pool(X_2)) ; ...]))``.

    Args:
        dims: frame width of each modality, by name, in order.
        width: d_av.
        max_frames: T. A row gets ``min(T, frames of its longest modality)`` windows, the same for all its modalities:
            window i of each covers the same part of the utterance, and shorter modalities spread over them.
        pool: ``"before"`` the layers, or ``"after"`` them: ``pool(E_m(X_m))``.
        others: as in :class:`ModalityEncoder`.
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
        pool: str = "before",
        feature_norm: str = "none",
    ) -> None:
        super().__init__()
        leave_out_cudnn_attention()
        self.max_frames = max_frames
        self.pool = pool
        self.encoders = nn.ModuleDict(
            {
                name: ModalityEncoder(
                    dim, width, num_layers, num_heads, ffw_width, dropout, input_dropout, feature_norm
                )
                for name, dim in dims.items()
            }
        )
        self.join = nn.Linear(width * len(dims), width)
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Mapping[str, tuple[Tensor, Tensor]]) -> AVContext:
        """``features``: name -> (frames [b x t_m x d_m], mask [b x t_m]), every modality of ``dims``."""
        lengths = torch.stack([features[name][1].sum(dim=1) for name in self.encoders])  # [modalities x b]
        windows = lengths.amax(dim=0).clamp(max=self.max_frames)  # [b]
        frames_out = min(self.max_frames, max(features[name][1].shape[1] for name in self.encoders))
        pooled = torch.arange(frames_out, device=windows.device) < windows[:, None]  # [b x T]
        encode = POOLING[self.pool]
        parts = {
            name: AVContext(
                encode(cast(ModalityEncoder, encoder), *features[name], windows, pooled),
                pooled & features[name][1].any(dim=1, keepdim=True),
            )
            for name, encoder in self.encoders.items()
        }
        frames = self.norm(self.join(torch.cat([part.frames for part in parts.values()], dim=-1)))
        return AVContext(frames * pooled[..., None], pooled, parts)
