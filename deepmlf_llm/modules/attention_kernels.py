"""Which of PyTorch's attention kernels must not be chosen."""

from __future__ import annotations

import torch


def leave_out_cudnn_attention() -> None:
    """Keeps this process from choosing cuDNN's attention, of the LM too.

    With a mask its backward pass gives NaN for some lengths on Hopper (seen with PyTorch 2.11;
    https://github.com/pytorch/pytorch/issues/196678). The memory-efficient kernel, the next choice, does not.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
