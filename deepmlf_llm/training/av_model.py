"""The AV encoder alone as a Trainer sees it: a model with a loss, and the trainer of that model.

Stage 1 of DeepMLF's fusion curriculum (arXiv 2504.11082): L1 between a linear head on Z and the polarity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.files import files_aside
from deepmlf_llm.fusion.build import build_av_encoder
from deepmlf_llm.fusion.decoder import DeepMLFOutput
from deepmlf_llm.fusion.objective import LossTerm, combine
from deepmlf_llm.fusion.task_loss import task_loss
from deepmlf_llm.modules import AVEncoder, AVRegressor
from deepmlf_llm.modules.seqaug import seqaug
from deepmlf_llm.training.head_metrics import HEADS
from deepmlf_llm.training.trainer import DeepMLFTrainer

CHECKPOINT = "model.safetensors"  # Trainer's own name for weights that are not an adapter
TERM = "av"


class AVEncoderModel(nn.Module):
    """E_AV under one linear head.

    Args:
        config: its ``av_encoder``, ``modalities``, ``seqaug`` (of raw features) and ``objective.loss`` count.
        readout: ``"mean"`` or ``"last"`` frame of Z.

    Raises:
        ConfigError: no modality.
    """

    def __init__(self, config: DeepMLFConfig, readout: str = "mean") -> None:
        super().__init__()
        self.deepmlf_config = config
        self.regressor = AVRegressor(build_av_encoder(config), config.av_encoder.width, readout, config.num_outputs)

    @property
    def av_encoder(self) -> AVEncoder:
        return self.regressor.encoder

    def forward(
        self, labels: Tensor | None = None, loss_counts: Mapping[str, Tensor] | None = None, **features: Tensor
    ) -> DeepMLFOutput:
        """Polarity of a batch of utterances, and with labels the loss over those that are heard or seen.

        Notation used for tensor shapes: b batch, t frames of a modality (each its own), d_m its width.

        Args:
            labels: polarity [b].
            loss_counts: what the sum of the loss over this batch is divided by; default: what the batch has.
            features: for each modality ``<name>`` [b x t x d_m] and ``<name>_mask``, True where real [b x t].
        """
        given = {name: (features[name], features[f"{name}_mask"]) for name in self.deepmlf_config.modalities}
        polarity = self.regressor(self._augmented(given))
        shown = polarity.squeeze(-1)
        output = DeepMLFOutput(polarity=shown, av_polarity=shown)
        if labels is not None:
            present = heard(features, given)
            error = task_loss(self.deepmlf_config)(polarity, labels)
            term = LossTerm(TERM, (error * present).sum(), present.sum(), 1.0)
            output.loss, output.losses = combine([term], loss_counts)
        return output

    def _augmented(self, given: dict[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
        """SeqAug of raw features, as in the training of the whole model."""
        if not self.training:
            return given
        settings = self.deepmlf_config.seqaug
        return {
            name: (seqaug(x, mask, settings.av_p_apply, settings.av_p_feat), mask) for name, (x, mask) in given.items()
        }

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """One role: ``av_encoder``."""
        return {"av_encoder": [(name, p) for name, p in self.named_parameters() if p.requires_grad]}

    def gate_values(self) -> dict[str, dict[str, float]]:
        """It has none."""
        return {}

    def save_pretrained(self, directory: str | Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Writes the weights for Trainer to go on from, the head included."""
        from safetensors.torch import save_file

        tensors = self.state_dict() if state_dict is None else state_dict
        with files_aside(Path(directory), last=CHECKPOINT) as aside:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside / CHECKPOINT)


def heard(batch: Mapping[str, Tensor], names: Any) -> Tensor:
    """True for each utterance of a batch with a real frame of any modality [b]."""
    return torch.stack([batch[f"{name}_mask"].any(dim=1) for name in names]).any(dim=0)


class AVEncoderTrainer(DeepMLFTrainer):
    """As for the whole model, of batches without text and with one head."""

    def _step_counts(self, batch_samples: Sequence[Mapping[str, Tensor]], device: Any) -> dict[str, Tensor]:
        count = torch.stack([heard(batch, self.modalities).sum() for batch in batch_samples]).sum().to(device)
        if self.args.world_size > 1:
            torch.distributed.all_reduce(count)
        return {TERM: count.double() / self.args.world_size}

    @property
    def heads(self) -> tuple[str, ...]:
        return HEADS[:1]
