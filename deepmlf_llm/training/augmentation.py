"""What training takes from a batch: whole modalities of some utterances, some frames of the others.

Drawn before the batch enters the model, so that the loss counts what is left, and the first gradients are judged by it.
Each draw is a function of the run's seed, the epoch, the utterance and the modality alone. Nothing has to be kept to go
on with a run, and an utterance loses the same in a batch of one as in a batch of many, on one process as on several.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepmlf_llm.modules.missing import drop_frames, drop_rows
from deepmlf_llm.training.batching import INDEX


@dataclass(frozen=True)
class Augmentation:
    """Batches as training sees them.

    Args:
        modalities: names of them.
        seed: of the run.
        modality_dropout: probability that a modality of an utterance is absent, for each of its modalities apart.
        frame_dropout: share of the real frames that go, of a modality that is there; at least one stays.
    """

    modalities: tuple[str, ...]
    seed: int
    modality_dropout: float = 0.0
    frame_dropout: float = 0.0

    def __call__(self, batch: Mapping[str, Any], epoch: int) -> dict[str, Any]:
        """The batch with masks of what is left; the one given stays as it is.

        Args:
            batch: with :data:`~deepmlf_llm.training.batching.INDEX` [b], and of each modality ``<name>_mask`` [b x t].
            epoch: from 0.
        """
        changed = dict(batch)
        for name in self.modalities if self.modality_dropout or self.frame_dropout else ():
            mask = changed[f"{name}_mask"].bool()
            draws = self._draws(batch[INDEX].tolist(), epoch, name, 1 + mask.shape[1]).to(mask.device)
            mask = drop_frames(mask, draws[:, 1:], self.frame_dropout)
            changed[f"{name}_mask"] = drop_rows(mask, draws[:, 0], self.modality_dropout)
        return changed

    def _draws(self, utterances: list[int], epoch: int, purpose: str, count: int) -> Tensor:
        """Numbers in [0, 1), a row for each utterance [b x count]; more of them begin with the same ones."""
        rows = [self._generator(utterance, epoch, purpose).random(count) for utterance in utterances]
        return torch.from_numpy(np.stack(rows))

    def _generator(self, utterance: int, epoch: int, purpose: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, utterance, zlib.crc32(purpose.encode())])
