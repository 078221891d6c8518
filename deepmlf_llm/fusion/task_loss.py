"""What a head's outputs cost, by what the labels mean: a distance, cross-entropy, or one for each class by itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.errors import ConfigError
from deepmlf_llm.tasks.classification import ClassificationTask
from deepmlf_llm.tasks.registry import task_of

REGRESSION = {"l1": torch.abs, "mse": torch.square}

TaskLoss = Callable[[Tensor, Tensor], Tensor]
"""Outputs of a head [b x .. x o] and labels -> the loss of each utterance, a mean over its outputs [b]."""


def task_loss(config: DeepMLFConfig) -> TaskLoss:
    """The loss that the task of an adapter asks for, in the dtype of the outputs.

    Classes are weighed as the data have it (``class_weights``): a class that is rare counts more. What is divided by is
    the number of utterances all the same, so a step over several batches has the gradient of one large batch; balanced
    weights are 1 in the mean over the training split.
    """
    task = task_of(config.dataset, config.task)
    if not isinstance(task, ClassificationTask):
        return distance(config.objective.loss)
    weights = task.weights if config.objective.class_weights == "data" else None
    return (each_class if task.several else cross_entropy)(weights)


def distance(kind: str) -> TaskLoss:
    """``"l1"`` or ``"mse"``; labels [b], or [b x o]. Labels of another shape raise a :class:`ConfigError`."""

    def loss(found: Tensor, labels: Tensor) -> Tensor:
        if labels.shape not in ((len(found),), (len(found), found.shape[-1])):
            raise ConfigError(
                f"labels: got shape {list(labels.shape)}, expected [{len(found)}] or [{len(found)}, {found.shape[-1]}]"
            )
        target = labels.to(found.dtype).reshape(len(found), 1, -1)  # [b x 1 x o]
        return REGRESSION[kind](_rows(found) - target).mean(dim=(1, 2))

    return loss


def cross_entropy(weights: tuple[float, ...] | None = None) -> TaskLoss:
    """Cross-entropy; labels are indices of classes [b]."""

    def loss(found: Tensor, labels: Tensor) -> Tensor:
        rows = _rows(found)
        target = labels.long()[:, None].expand(rows.shape[:2])
        return F.cross_entropy(rows.mT, target, _like(weights, rows), reduction="none").mean(dim=1)

    return loss


def each_class(weights: tuple[float, ...] | None = None) -> TaskLoss:
    """Binary cross-entropy of each class by itself; labels are 0 and 1 [b x o]. A weight is of what is 1."""

    def loss(found: Tensor, labels: Tensor) -> Tensor:
        rows = _rows(found)
        target = labels.to(rows.dtype)[:, None].expand_as(rows)
        one = _like(weights, rows)
        return F.binary_cross_entropy_with_logits(rows, target, reduction="none", pos_weight=one).mean(dim=(1, 2))

    return loss


def _rows(found: Tensor) -> Tensor:
    """[b x .. x o] -> [b x k x o]."""
    return found.reshape(len(found), -1, found.shape[-1])


def _like(weights: tuple[float, ...] | None, x: Tensor) -> Tensor | None:
    return None if weights is None else x.new_tensor(weights)
