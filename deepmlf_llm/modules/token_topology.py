"""Who reads whom among the fusion tokens, and which frames each of them hears and sees.

DeepMLF (arXiv 2504.11082) pools them: a fusion token reads the text, the tokens before it and all of Z. SeRIn, its
successor, keeps them apart by a mask without parameters: a group of tokens for each modality reads the text, itself and
the frames of its own modality; one more group, the joint one, reads the text, all groups and Z, and no group reads it.
What the groups hold then meets in the head alone (:mod:`~deepmlf_llm.modules.mixing_head`).

Text comes first and is read by all; no topology lets it read a token, so whatever is kept of a text stays right.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deepmlf_llm.modules.av_encoder import AVContext


class Pooled(nn.Module):
    """One group: tokens read each other as the causal LM has it, and all of Z (the paper)."""

    sizes: tuple[int, ...] = ()

    def reads(self, device: torch.device) -> Tensor | None:
        """None: nothing is masked beside what the LM masks."""
        return None

    def frames(self, context: AVContext) -> Tensor:
        """What there is to hear and see [b x t x d_av]."""
        return context.frames

    def mask(self, context: AVContext) -> Tensor:
        """True where it may be read, by all tokens [b x t]."""
        return context.mask


class Segregated(nn.Module):
    """A group for each modality, then the joint group (SeRIn).

    Notation used for tensor shapes:
        - b: batch size
        - n: number of fusion tokens
        - g: number of groups, modalities + 1
        - t: frames of Z, and as many of each modality

    Args:
        names: of the modalities, in the order of their groups.
        sizes: tokens of each group [g]. The joint group is last: the LM is causal, and it has to read all others.
        context_width: d_av.
    """

    def __init__(self, names: Sequence[str], sizes: Sequence[int], context_width: int) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        # As Z has one: keys and values of all contexts come out of one projection.
        self.norms = nn.ModuleDict({name: nn.LayerNorm(context_width) for name in names})

    def reads(self, device: torch.device) -> Tensor:
        """True where a token (row) may read another (column) [n x n]; the LM's own causal mask comes on top."""
        group = self._group_of_tokens(device)
        return (group[:, None] == group) | (group[:, None] == len(self.sizes) - 1)

    def frames(self, context: AVContext) -> Tensor:
        """Frames of each modality, then of Z [b x (g t) x d_av]."""
        own = [norm(context.parts[name].frames) for name, norm in self.norms.items()]
        return torch.cat([*own, context.frames], dim=1)

    def mask(self, context: AVContext) -> Tensor:
        """True where each token may read them: a modality's group its frames, the joint group Z [b x n x (g t)]."""
        real = torch.stack([*(context.parts[name].mask for name in self.norms), context.mask], dim=1)  # [b x g x t]
        same = torch.eye(len(self.sizes), dtype=torch.bool, device=real.device)  # group x context
        seen = (same[..., None] & real[:, None]).flatten(2)  # [b x g x (g t)]
        return seen[:, self._group_of_tokens(real.device)]

    def _group_of_tokens(self, device: torch.device) -> Tensor:
        """[n]"""
        return torch.cat([torch.full((size,), index, device=device) for index, size in enumerate(self.sizes)])
