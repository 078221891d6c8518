"""Labels of one modality alone beside those of the utterance: text, audio and vision, as CH-SIMS has them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from deepmlf_llm.data.corpus import UNIMODAL_LABELS
from deepmlf_llm.errors import DataError
from deepmlf_llm.tasks.classification import ClassificationTask
from deepmlf_llm.tasks.registry import Task

KEY = "unimodal_labels"
"""Of an item: float32 [3], text, audio, vision; NaN where a modality was not rated."""
NAMED = {"T": "the text", "A": "audio", "V": "vision"}
MODALITY = {"A": "audio", "V": "vision"}
"""Whose frames a label is of; the text is always there."""


def unimodal_labels(dataset: Any) -> np.ndarray:
    """Of every utterance [N x 3], float32; NaN where a modality was not rated.

    Args:
        dataset: a :class:`~deepmlf_llm.data.dataset.PolarityDataset`, or any whose items have ``unimodal_labels`` [3].
    """
    nothing = np.full((len(dataset), len(UNIMODAL_LABELS)), np.nan, dtype=np.float32)
    held = getattr(dataset, "unimodal", None)
    if held is not None:
        for column, suffix in enumerate(UNIMODAL_LABELS):
            if suffix in held:
                nothing[:, column] = held[suffix]
        return nothing
    for row in range(len(dataset)):
        if (label := dataset[row].get(KEY)) is not None:
            nothing[row] = label
    return nothing


def unimodal_targets(train: Any, modalities: Iterable[str], task: Task) -> list[str]:
    """Which of "T", "A" and "V" heads can learn from.

    Args:
        train: the training split.
        modalities: that a run uses.
        task: what the labels mean.

    Raises:
        DataError: of none, or the labels are classes.
    """
    asked = "objective.unimodal_labels=true"
    if isinstance(task, ClassificationTask):
        raise DataError(f"{asked} is for labels of a scale; those of {task.name!r} are {task.describe()}")
    rated = ~np.isnan(unimodal_labels(train)).all(axis=0)
    there = [suffix for suffix, any_rated in zip(UNIMODAL_LABELS, rated, strict=True) if any_rated]
    used = {None, *modalities}
    found = [suffix for suffix in there if MODALITY.get(suffix) in used]
    if found:
        return found
    names = " and ".join(NAMED[suffix] for suffix in there)
    what = f"those of {names} only, which the run leaves out" if there else "none"
    raise DataError(
        f"{asked} needs labels of one modality alone (regression_labels_T, _A, _V of a pickle; "
        f"label_T, label_A, label_V of JSON Lines and label.csv): the training split has {what}"
    )


class WithUnimodal(Dataset[dict[str, Any]]):
    """A data set whose items also hold ``unimodal_labels``."""

    texts: list[str]  # where the data set below has them

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.rated = unimodal_labels(dataset)
        for name in ("ids", "texts", "labels"):  # what can be read of all utterances without their features
            if hasattr(dataset, name):
                setattr(self, name, getattr(dataset, name))

    def __len__(self) -> int:
        return len(self.rated)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.dataset[index], KEY: self.rated[index]}
