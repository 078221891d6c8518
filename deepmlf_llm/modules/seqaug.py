"""SeqAug: regularise a sequence by exchanging some of its features between time steps.

DeepMLF section 3 (arXiv 2504.11082): with probability ``p_apply`` per batch draw ONE permutation of the time steps; per
sample a Bernoulli(``p_feat``) subset of the embedding dimensions takes its values from the permuted steps. Only real
steps move: padding stays where it is and is never read.
"""

import torch
from torch import Tensor


def permute_real_steps(mask: Tensor, keys: Tensor) -> Tensor:
    """Source step of each step [b x l]: one permutation for the batch, restricted to each row's real steps.

    Args:
        mask: True where a step is real [b x l]; real steps may sit anywhere.
        keys: one random number a rank of real steps [l]. Rows with equally many real steps share the permutation.
    """
    steps = torch.arange(mask.shape[1], device=mask.device)
    rank = (mask.cumsum(dim=1) - 1).clamp(min=0)  # [b x l], among real steps
    far = torch.full_like(rank, 2, dtype=keys.dtype)  # sorts behind every key in [0, 1)
    real_first = (~mask).long().argsort(dim=1, stable=True)  # positions of the real steps, in order, then padding
    shuffled = torch.where(mask, keys[rank], far).argsort(dim=1, stable=True)  # the real positions, shuffled
    source = torch.empty_like(shuffled).scatter_(1, real_first, shuffled)  # j-th real step <- j-th shuffled one
    return torch.where(mask, source, steps)


def seqaug(x: Tensor, mask: Tensor, p_apply: float, p_feat: float) -> Tensor:
    """Augmented sequences, same shape and dtype.

    Args:
        x: embeddings or features [b x l x d].
        mask: True where a step is real [b x l].
        p_apply: probability, per batch.
        p_feat: share of dimensions, drawn per sample.
    """
    if p_apply <= 0 or p_feat <= 0:
        return x
    draw = torch.rand(x.shape[1] + 1, device=x.device)
    source = permute_real_steps(mask.bool(), draw[1:])
    permuted = x.gather(1, source[..., None].expand_as(x))
    chosen = torch.rand(x.shape[0], 1, x.shape[2], device=x.device) < p_feat
    # A tensor, not a branch: the draw must not decide which operations a rank runs.
    return torch.where(chosen & (draw[0] < p_apply), permuted, x)
