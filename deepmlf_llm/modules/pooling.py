"""Time pooling: sequences of any length -> at most T frames, means over contiguous windows of real frames.

DeepMLF pools the raw frames of audio and vision before it encodes them (arXiv 2504.11082 and its authors' code, whose
strided reshape averages frames t, t + T, t + 2T and scrambles time; here windows are contiguous).
"""

import torch
from torch import Tensor


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
