"""What training changes in a batch: features blended with those of a near label (C-Mixup), whole modalities of some
utterances taken away, and some frames of the others.

Drawn before the batch enters the model, so that the loss counts what is left, and the first gradients are judged by it.
Each draw is a function of the run's seed, the epoch, the utterance and the modality alone. Nothing has to be kept to go
on with a run, and an utterance loses the same in a batch of one as in a batch of many, on one process as on several.
Only whom C-Mixup blends it with depends on its batch.

**What is blended, and what its label is.** C-Mixup blends whole examples. A transcript has no blend that is a
sentence, or that a frozen LM has kept, so it stays, and audio and vision alone are blended. Were the label that of the
blend, the text head would learn another polarity for the same words, and the prediction that a voice of near
polarity moves it as far as a whole example would. So an utterance keeps the larger share of its own features (the
factor is at least one half), and with ``labels="av"`` the AV head, which reads nothing but the blend, is judged by the
blended label: that is the paper's method on E_AV. Task and fusion heads keep the utterance's label, which is off by no
more than the other share of a small distance. ``"all"`` gives them the blended label too, for comparison; ``"keep"``
gives it to none.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepmlf_llm.errors import ConfigError
from deepmlf_llm.modules.missing import drop_frames, drop_rows
from deepmlf_llm.modules.mixup import blend_frames, draw_partners, partner_probabilities
from deepmlf_llm.training.batching import INDEX
from deepmlf_llm.training.settings import RunSettings


@dataclass(frozen=True)
class Augmentation:
    """Batches as training sees them.

    Args:
        modalities: names of them.
        seed: of the run.
        modality_dropout: probability that a modality of an utterance is absent, for each of its modalities apart.
        frame_dropout: share of the real frames that go, of a modality that is there; at least one stays.
        cmixup_alpha: of Beta(alpha, alpha), from which the factor comes; 0: nothing is blended.
        cmixup_bandwidth: sigma of the kernel on the distance of labels.
        cmixup_labels: heads that are judged by the blended label: ``"keep"`` none, ``"av"``, or ``"all"`` but text.
    """

    modalities: tuple[str, ...]
    seed: int
    modality_dropout: float = 0.0
    frame_dropout: float = 0.0
    cmixup_alpha: float = 0.0
    cmixup_bandwidth: float = 0.5
    cmixup_labels: str = "av"

    @classmethod
    def of(cls, settings: RunSettings, modalities: Iterable[str], seed: int) -> Augmentation:
        """As a run's settings ask for it.

        Raises:
            ConfigError: it is asked for without a modality that it could change.
        """
        own = {
            f.name: getattr(settings, f.name) for f in dataclasses.fields(cls) if f.name not in ("modalities", "seed")
        }
        augmentation = cls(tuple(modalities), seed, **own)
        for problem in settings.modality_problems(augmentation.modalities):
            raise ConfigError(problem)
        return augmentation

    def __call__(self, batch: Mapping[str, Any], epoch: int) -> dict[str, Any]:
        """The batch as it is trained on; the one given stays as it is.

        Args:
            batch: with :data:`~deepmlf_llm.training.batching.INDEX` [b], labels [b], and of each modality ``<name>``
                [b x t x d] and ``<name>_mask`` [b x t].
            epoch: from 0.
        """
        changed = self._blended(batch, epoch) if self.cmixup_alpha else dict(batch)
        for name in self.modalities if self.modality_dropout or self.frame_dropout else ():
            mask = changed[f"{name}_mask"].bool()
            draws = self._draws(batch[INDEX].tolist(), epoch, name, 1 + mask.shape[1]).to(mask.device)
            mask = drop_frames(mask, draws[:, 1:], self.frame_dropout)
            changed[f"{name}_mask"] = drop_rows(mask, draws[:, 0], self.modality_dropout)
        return changed

    def _blended(self, batch: Mapping[str, Any], epoch: int) -> dict[str, Any]:
        """Audio and vision of each utterance blended with those of a partner that has all its modalities."""
        labels, masks = batch["labels"], {name: batch[f"{name}_mask"].bool() for name in self.modalities}
        present = torch.stack([mask.any(dim=1) for mask in masks.values()])  # [modalities x b]
        may_pair = (present[:, None, :] | ~present[:, :, None]).all(dim=0)  # [b x b]
        generators = [self._generator(utterance, epoch, "C-Mixup") for utterance in batch[INDEX].tolist()]
        drawn = [(random.beta(self.cmixup_alpha, self.cmixup_alpha), random.random()) for random in generators]
        factor, draw = torch.tensor(drawn, dtype=torch.float64, device=labels.device).unbind(dim=1)
        factor = torch.maximum(factor, 1 - factor)
        partner = draw_partners(partner_probabilities(labels, may_pair, self.cmixup_bandwidth), draw)
        changed = dict(batch)
        for name, mask in masks.items():
            changed[name] = blend_frames(batch[name], mask, partner, factor)
        blend = (factor * labels + (1 - factor) * labels[partner]).to(labels.dtype)
        blend = torch.where(present.any(dim=0), blend, labels)  # what has nothing to hear or see was not blended
        if self.cmixup_labels == "av":
            changed["head_labels"] = {"av": blend}
        elif self.cmixup_labels == "all":
            changed |= {"labels": blend, "head_labels": {"text": labels}}
        return changed

    def _draws(self, utterances: list[int], epoch: int, purpose: str, count: int) -> Tensor:
        """Numbers in [0, 1), a row for each utterance [b x count]; more of them begin with the same ones."""
        rows = [self._generator(utterance, epoch, purpose).random(count) for utterance in utterances]
        return torch.from_numpy(np.stack(rows))

    def _generator(self, utterance: int, epoch: int, purpose: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, utterance, zlib.crc32(purpose.encode())])
