"""Labels that are classes: emotion, sarcasm and the like; one class an utterance, or any number of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmlf_llm.errors import DataError

SINGLE, MULTI = "single_label", "multi_label"
BALANCED, NO_WEIGHTS = "balanced", "none"
FEWEST_CLASSES, MOST_CLASSES = 2, 1000
SHOWN = 8  # classes that a sentence names


@dataclass(frozen=True)
class ClassificationTask:
    """The rules of one data set whose labels are classes.

    A label is in memory the index of its class, or with several labels one number a class, 1 where it holds.

    Attributes:
        name: of the data set, as settings and files have it.
        title: how papers call the data set.
        classes: their names, in the order of the model's outputs; empty: found in the data when they are prepared.
        several: any number of classes holds for an utterance (multi-label), each judged by itself.
        class_weights: of each class in the loss; ``"balanced"``: made from the training split when the data are
            prepared (:func:`balanced_weights`); ``"none"``: 1.
        text_case: case of transcripts.
        columns: numbers in a row of labels -> the column with which the classes begin.
    """

    name: str
    title: str
    classes: tuple[str, ...] = ()
    several: bool = False
    class_weights: tuple[float, ...] | str = BALANCED
    text_case: str = "keep"
    columns: Mapping[int, int] = field(default_factory=dict)

    best_metric = "f1_weighted"

    @property
    def kind(self) -> str:
        return MULTI if self.several else SINGLE

    @property
    def num_outputs(self) -> int:
        """Logits that a head has: one a class."""
        return len(self.classes)

    @property
    def weights(self) -> tuple[float, ...] | None:
        """Of the classes in the loss; None: all alike."""
        return self.class_weights if isinstance(self.class_weights, tuple) else None

    def describe(self) -> str:
        """What a label is, in a few words."""
        if not self.classes:
            return "classes found in the data"
        more = f" and {len(self.classes) - SHOWN} more" if len(self.classes) > SHOWN else ""
        return f"{'any' if self.several else 'one'} of the classes {', '.join(self.classes[:SHOWN])}{more}"

    def differences(self, other: Any) -> str:
        """In what the labels of another task mean something else, in words; empty where they do not."""
        same = isinstance(other, ClassificationTask) and (self.classes, self.several) == (other.classes, other.several)
        return "" if same else f"{self.name!r}, {self.describe()}, not {other.name!r}, {other.describe()}"

    def to_dict(self) -> dict[str, Any]:
        """What a file holds of it beside its name."""
        weights = self.class_weights
        return {
            "kind": self.kind,
            "title": self.title,
            "classes": list(self.classes),
            "class_weights": list(weights) if isinstance(weights, tuple) else weights,
            "text_case": self.text_case,
        }


def class_counts(labels: NDArray[Any], task: ClassificationTask) -> list[int]:
    """How many utterances have each class.

    Args:
        labels: indices [n], or with several labels 0 and 1 [n x c].
        task: whose classes they are.
    """
    if task.several:
        return [int(count) for count in (labels > 0.5).sum(axis=0)]
    return [int(count) for count in np.bincount(labels.astype(np.int64), minlength=len(task.classes))]


def balanced_weights(counts: Sequence[int], utterances: int, several: bool) -> tuple[float, ...]:
    """Weights under which every class counts alike; 1 for a class that no utterance has.

    One class an utterance: ``n / (c n_k)``, whose mean over the utterances is 1. Several: ``(n - n_k) / n_k``, what the
    utterances that have the class weigh beside those that have not.
    """
    if several:
        return tuple((utterances - count) / count if 0 < count < utterances else 1.0 for count in counts)
    return tuple(utterances / (len(counts) * count) if count else 1.0 for count in counts)


def check_class_labels(labels: NDArray[Any], task: ClassificationTask, where: str) -> None:
    """Raises DataError unless ``labels`` are indices of the task's classes [n], or 0 and 1 [n x c]."""
    most = 1 if task.several else len(task.classes) - 1
    wrong = ~((labels >= 0) & (labels <= most) & (labels == np.floor(labels)))  # NaN compares false
    if wrong.any():
        first = labels[wrong].flat[0]
        row = int(np.flatnonzero(wrong.reshape(len(labels), -1).any(axis=1))[0])
        expected = "0 or 1 for each class" if task.several else f"the index of a class, 0 to {most}"
        raise DataError(f"{where}: {first:g} in row {row}: expected {expected} ({task.describe()})")


EMOTION = ClassificationTask("emotion", "an emotion set")
EMOTIONS = ClassificationTask("emotions", "an emotion set with several labels", several=True)
SARCASM = ClassificationTask("sarcasm", "a sarcasm set", classes=("literal", "sarcastic"))
MOSEI_EMOTIONS = ClassificationTask(
    "mosei_emotions",
    "CMU-MOSEI's emotions",
    classes=("happy", "sad", "anger", "surprise", "disgust", "fear"),
    several=True,
    columns={7: 1, 6: 0},  # intensities from 0 to 3 behind the sentiment; an emotion is there where it is above 0
)
