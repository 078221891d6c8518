"""The dtype that the method computes in: what is trained, gates and losses are fp32, and fp64 beside an fp64 LM."""

import torch
from torch import Tensor


def at_least_fp32(x: Tensor) -> torch.dtype:
    """The dtype of masters of such a weight, or of sums of such values: fp32, and fp64 for fp64."""
    return torch.promote_types(x.dtype, torch.float32)
