"""``pretrain_av_encoder``: stage 1 of the fusion curriculum, as a run like any other, without a language model.

The published figures of DeepMLF (arXiv 2504.11082) begin with an AV encoder that has learnt the polarity alone. Data,
checkpoints, resuming and selection on validation are those of :mod:`~deepmlf_llm.training.run`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from deepmlf_llm.adapters.av_encoder_file import write_av_encoder
from deepmlf_llm.training.av_model import AVEncoderModel
from deepmlf_llm.training.av_settings import check_av_settings
from deepmlf_llm.training.data import TrainingData, check_labels
from deepmlf_llm.training.launch import Launch
from deepmlf_llm.training.lifetime import carry_out
from deepmlf_llm.training.result import check_best
from deepmlf_llm.training.run import _Run
from deepmlf_llm.training.settings import RunSettings
from deepmlf_llm.training.starting import INSIDE
from deepmlf_llm.training.stopping import StopRequest
from deepmlf_llm.training.trainer_arguments import make_arguments


def pretrain_av_encoder(
    settings: RunSettings,
    data: TrainingData | None = None,
    dry_run: bool = False,
    opened: Callable[[Path], None] | None = None,
    trust_run: bool = False,
    resume: str = "auto",
) -> dict[str, Any]:
    """Trains an AV encoder alone, or goes on with the same run; every process of a launcher calls it.

    The run's directory gets ``av_encoder/``, which ``av_encoder_from`` of a later run takes.

    Args:
        settings, data, dry_run, opened, trust_run, resume: as for :func:`~deepmlf_llm.training.run.run_training`.

    Returns:
        What ``result.json`` holds: as there, without a base model, fusion layers and gates.

    Raises:
        DeepMLFError: the input is at fault; nothing half-written is left.
        RunStopped: a signal asked for the end; the run has saved where it is, and the same call goes on.
    """
    check_av_settings(settings)

    def begin(launch: Launch, deepspeed: dict[str, Any] | None, stop: StopRequest) -> _AVRun:
        return _AVRun(settings, data, launch, deepspeed, opened, stop, trust_run, resume=resume)

    return carry_out(begin, settings, dry_run)


class FeatureDataset(Dataset[dict[str, Any]]):
    """A split whose transcripts nobody reads, with what a tokenised one says of itself.

    Args:
        dataset: the split.
    """

    truncated = 0

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item: dict[str, Any] = self.dataset[index]
        return item


class _AVRun(_Run):
    """The steps of such a run that differ."""

    product = INSIDE

    def _base(self, settings: RunSettings) -> str:
        return "av-encoder"  # in names and facts of the run, where others have their base model

    def load(self) -> tuple[Any, Any, Any, dict[str, Any]]:
        from transformers import set_seed

        size = len(self.train_split)  # type: ignore[arg-type]
        arguments = make_arguments(self.settings, self.directory.path, self.launch.processes, size, None)
        parts = {"train": self.train_split, "valid": self.data.valid, "test": self.data.test}
        for name, part in parts.items():
            check_labels(part, name, self.data.rules)
        splits = {name: FeatureDataset(part) for name, part in parts.items()}
        set_seed(arguments.seed)
        return arguments, AVEncoderModel(self.config, self.settings.av_readout), None, splits

    def selected(self, trainer: Any, validation: Any) -> tuple[Any, None]:
        from deepmlf_llm.training.scores import score

        trainer.load_best()
        found = score(trainer, validation, "valid", self.config.dataset, prefix="best")
        check_best(trainer, found.metrics)
        return found, None

    def save(self, trainer: Any) -> None:
        if self.launch.is_main:
            encoder = trainer.model.av_encoder.state_dict()
            write_av_encoder(self.directory.adapter_aside, encoder, self.config, self.settings.av_readout)

    def complete(self, result: dict[str, Any], model: Any) -> None:
        """There are no MM Blocks, no base, and no card."""
