"""The AV encoder alone under one linear head: stage 1 of DeepMLF's fusion curriculum (arXiv 2504.11082).

``y = Linear(z)``, where z is the last real frame of Z (published) or the mean of Z, which is what the AV head of the
whole model reads.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from deepmlf_llm.modules.av_encoder import AVContext, AVEncoder


def last_frame(context: AVContext) -> Tensor:
    """The last real frame of Z [b x d_av]; zero for a row without any."""
    last = (context.mask.sum(dim=1) - 1).clamp(min=0)
    return context.frames.gather(1, last[:, None, None].expand(-1, 1, context.frames.shape[-1])).squeeze(1)


READOUTS: dict[str, Callable[[AVContext], Tensor]] = {"mean": AVContext.mean, "last": last_frame}
"""Name -> Z to what the head reads [b x d_av]."""


class AVRegressor(nn.Module):
    """Audio and vision to polarity, without any text.

    Args:
        encoder: E_AV.
        width: d_av.
        readout: of :data:`READOUTS`.
        num_outputs: o.
    """

    def __init__(self, encoder: AVEncoder, width: int, readout: str = "mean", num_outputs: int = 1) -> None:
        super().__init__()
        self.encoder = encoder
        self.read = READOUTS[readout]
        self.head = nn.Linear(width, num_outputs)

    def forward(self, features: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        """Features as for :class:`AVEncoder` -> polarity [b x o], in the head's own dtype."""
        context = self.encoder(features)
        with torch.autocast(context.frames.device.type, enabled=False):
            polarity: Tensor = self.head(self.read(context).to(self.head.weight.dtype))
        return polarity
