"""C-Mixup of sequences: each is blended with one whose label is near.

Yao et al. 2022 (arXiv 2210.05775): the partner of an example is drawn with probability proportional to
``exp(-(y_i - y_j)^2 / (2 sigma^2))``, the example itself included, and features and label are blended by a factor from
Beta(alpha, alpha). Blending whatever pair comes along, as plain mixup does, gives labels that nothing in between has.

There the features of an example are one vector. Here they are sequences of different length, so that frames meet the
frames of the same part of the other utterance, which is how the AV encoder pools them too.

Notation used for tensor shapes: b batch, t frames, d width of a frame.
"""

import torch
from torch import Tensor


def partner_probabilities(labels: Tensor, may_pair: Tensor, bandwidth: float) -> Tensor:
    """Probability that row i is blended with row j [b x b]; each row adds up to 1.

    Args:
        labels: [b].
        may_pair: True where j has all that is blended of i [b x b]; an example may always stay itself.
        bandwidth: sigma, in units of the label.
    """
    distance = labels.double()[:, None] - labels.double()[None, :]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    weight = torch.exp(-((distance / bandwidth) ** 2) / 2) * (may_pair | itself)
    return weight / weight.sum(dim=1, keepdim=True)


def draw_partners(probabilities: Tensor, draw: Tensor) -> Tensor:
    """A partner of each row [b], from probabilities [b x b] and one number in [0, 1) a row [b]."""
    chosen = (probabilities.cumsum(dim=1) <= draw[:, None]).sum(dim=1)
    # Rounding may leave the sum below the draw: the last row that has any probability then.
    last = (probabilities > 0).long().cumsum(dim=1).argmax(dim=1)
    return torch.minimum(chosen, last)


def blend_frames(frames: Tensor, mask: Tensor, partner: Tensor, factor: Tensor) -> Tensor:
    """``factor x_i + (1 - factor) x_j``, frame by frame; padding stays as it is.

    A frame of rank r of n meets the partner's of rank ``floor((r + 1/2) m / n)`` of m: the same part of the utterance.

    Args:
        frames: [b x t x d].
        mask: True where a frame is real [b x t].
        partner: row j of each row i [b]; where j has no real frame, i stays as it is.
        factor: share of i [b].
    """
    count = mask.sum(dim=1)  # [b]
    rank = (mask.cumsum(dim=1) - 1).clamp(min=0)  # [b x t], among real frames
    met = ((2 * rank + 1) * count[partner][:, None]).div(2 * count.clamp(min=1)[:, None], rounding_mode="floor")
    real_first = (~mask).long().argsort(dim=1, stable=True)  # positions of the real frames, in order, then padding
    position = real_first[partner].gather(1, met.clamp(max=mask.shape[1] - 1))
    other = frames[partner].gather(1, position[..., None].expand_as(frames))
    share = factor.to(frames.dtype)[:, None, None]
    blended = share * frames + (1 - share) * other
    changes = (count[partner] > 0) & (partner != torch.arange(len(partner), device=partner.device))
    return torch.where((mask & changes[:, None])[..., None], blended, frames)
