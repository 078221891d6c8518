"""Normalisation of raw features inside the AV encoder: none, or BatchNorm over real frames.

An option of DeepMLF's authors (arXiv 2504.11082): BatchNorm of the pooled features, in front of the projection.
"""

import torch
from torch import Tensor, nn


class NoFrameNorm(nn.Module):
    """Features as they come."""

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x


class FrameBatchNorm(nn.BatchNorm1d):
    """BatchNorm whose statistics are those of the real frames of a batch: padding is neither counted nor read.

    A training batch with fewer than two real frames has no variance: it uses the running statistics and leaves them as
    they are. That is decided without a branch, so that every rank runs the same operations.

    Args:
        dim: width of a frame.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def __init__(self, dim: int) -> None:
        super().__init__(dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """[b x t x d] -> [b x t x d]; ``mask``: True where a frame is real [b x t]. Padding must be finite."""
        mean, variance = self._batch_statistics(x, mask) if self.training else (self.running_mean, self.running_var)
        return (x - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias

    def _batch_statistics(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each feature over real frames [d]; moves the running ones towards them."""
        real = mask[..., None].to(x.dtype)
        count = real.sum()
        mean = (x * real).sum(dim=(0, 1)) / count.clamp(min=1)
        variance = ((x - mean).square() * real).sum(dim=(0, 1)) / count.clamp(min=1)
        enough = count > 1
        with torch.no_grad():
            step = self.momentum * enough.to(x.dtype)
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.running_mean += step * (mean - self.running_mean)
            self.running_var += step * (unbiased - self.running_var)
            self.num_batches_tracked += enough
        return torch.where(enough, mean, self.running_mean), torch.where(enough, variance, self.running_var)


FRAME_NORMS: dict[str, type[nn.Module]] = {"none": NoFrameNorm, "batch": FrameBatchNorm}
