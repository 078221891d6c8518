"""What is said of one utterance, made of a model's outputs by what the labels of its training mean."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepmlf_llm.tasks.class_metrics import decide, probabilities
from deepmlf_llm.tasks.classification import ClassificationTask
from deepmlf_llm.tasks.metrics import polarity_label
from deepmlf_llm.tasks.registry import Task

Heard = Sequence[Collection[str]]
"""Of each utterance the names of the modalities that it has."""


@dataclass(frozen=True)
class Prediction:
    """What the model says of one utterance, on the scale of the labels it was trained on.

    Attributes:
        polarity: the prediction.
        label: negative, neutral or positive, by the data set's rule; of a task of one's own its names, None without.
        text_polarity: what the text alone says (its own head).
        av_polarity: what audio and vision alone say; None where the utterance has neither, or the model reads text
            alone.
        fusion_polarity: what the fusion tokens say, mean over them.
        task_polarity, verbalised_polarity: with ``readout="both"``, the two that the prediction is the mean of; else
            None, and in no file.
        modality_polarity: modality -> what it alone says, where modalities have heads of their own; None where the
            utterance lacks it.
    """

    polarity: float
    label: str | None
    text_polarity: float
    av_polarity: float | None
    fusion_polarity: float
    task_polarity: float | None = None
    verbalised_polarity: float | None = None
    modality_polarity: dict[str, float | None] | None = None

    def to_dict(self) -> dict[str, Any]:
        at_rest = ("task_polarity", "verbalised_polarity", "modality_polarity")
        return {name: value for name, value in asdict(self).items() if name not in at_rest or value is not None}

    def is_finite(self) -> bool:
        """Whether every number of it is."""
        return _finite(self.to_dict())


@dataclass(frozen=True)
class ClassPrediction:
    """What the model says of one utterance where labels are classes.

    Attributes:
        label: the most probable class; with several labels all that are more probable than not, maybe none.
        probabilities: of each class; they add up to 1, with several labels each is of its own.
        text_probabilities: what the text alone says (its own head).
        av_probabilities: what audio and vision alone say; None where the utterance has neither.
        fusion_probabilities: what the fusion tokens say, of the mean of their logits.
    """

    label: str | list[str]
    probabilities: dict[str, float]
    text_probabilities: dict[str, float]
    av_probabilities: dict[str, float] | None
    fusion_probabilities: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def is_finite(self) -> bool:
        """Whether every number of it is."""
        return _finite(self.to_dict())


def predictions_of(
    outputs: Any, heard: Sequence[Collection[str]], task: Task
) -> Iterator[Prediction | ClassPrediction]:
    """One for each row of a batch.

    Args:
        outputs: of the model: polarities [b], or logits [b x c].
        heard: of each row.
        task: what the labels mean.
    """
    av_head = torch.full_like(outputs.polarity, torch.nan) if outputs.av_polarity is None else outputs.av_polarity
    heads: list[Tensor] = [outputs.polarity, outputs.text_polarity, av_head, outputs.fusion_polarity]
    if isinstance(task, ClassificationTask):
        yield from _classes([head.double().cpu().numpy() for head in heads], heard, task)
        return
    alone = {name: found.tolist() for name, found in (outputs.modality_polarity or {}).items()}
    both = [outputs[name].tolist() for name in ("task_polarity", "verbalised_polarity") if name in outputs]
    for row, (polarity, text, av, fusion, *read) in enumerate(zip(*(h.tolist() for h in heads), *both, strict=True)):
        label = polarity_label(np.float32(polarity), task)
        own = {name: found[row] if name in heard[row] else None for name, found in alone.items()} or None
        heard_av = av if heard[row] else None
        task_said, verbalised_said = read or (None, None)
        yield Prediction(polarity, label, text, heard_av, fusion, task_said, verbalised_said, own)


def _classes(
    heads: Sequence[Any], heard: Sequence[Collection[str]], task: ClassificationTask
) -> Iterator[ClassPrediction]:
    decided = decide(heads[0], task)
    shares = [probabilities(head, task) for head in heads]
    for row, has_av in enumerate(heard):
        said, text, av, fusion = (dict(zip(task.classes, share[row].tolist(), strict=True)) for share in shares)
        found = [task.classes[k] for k in np.flatnonzero(decided[row])] if task.several else task.classes[decided[row]]
        yield ClassPrediction(found, said, text, av if has_av else None, fusion)


def _finite(values: Any) -> bool:
    if isinstance(values, Mapping):
        return all(map(_finite, values.values()))
    return not isinstance(values, float) or math.isfinite(values)
