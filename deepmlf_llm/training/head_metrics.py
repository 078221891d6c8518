"""Metrics of every head from what an evaluation predicted, as Trainer takes and logs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deepmlf_llm.config.labels import own_heads, unimodal_terms
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.data.corpus import UNIMODAL_LABELS
from deepmlf_llm.tasks.class_metrics import class_table
from deepmlf_llm.tasks.classification import ClassificationTask
from deepmlf_llm.tasks.metrics import METRIC_DEFINITIONS, task_metrics
from deepmlf_llm.tasks.registry import task_of

_SAYS = "_polarity"
_AV_HEAD = f"av{_SAYS}"
HEADS = ("polarity", f"fusion{_SAYS}", f"text{_SAYS}", _AV_HEAD)
READOUTS = (f"task{_SAYS}", f"verbalised{_SAYS}")
"""What the prediction is the mean of, with ``readout="both"``; else there are none."""


def heads_of(config: DeepMLFConfig) -> tuple[str, ...]:
    """The outputs that metrics are made of: no AV head where a model reads text alone, and after the others those of
    modalities that have one of their own."""
    usual = tuple(head for head in HEADS if head != _AV_HEAD or not config.reads_text_alone)
    both = READOUTS if config.readout == "both" else ()
    return (*usual, *both, *(f"{name}{_SAYS}" for name in own_heads(config.unimodal_targets)))


def said_by_heads(outputs: Any, heads: Sequence[str]) -> tuple[Any, ...]:
    """What heads, by the names of :func:`heads_of`, say in a batch."""
    alone = outputs.modality_polarity or {}
    return tuple(
        getattr(outputs, head) if head in (*HEADS, *READOUTS) else alone[head.removesuffix(_SAYS)] for head in heads
    )


class SplitMetrics:
    """What Trainer calls after an evaluation: the task's metrics of the prediction, and of each other head.

    Heads that learn from labels of one modality alone are measured against these too, as ``text_own``, ``audio_own``.

    Args:
        config: of the adapter.
        heads: what an evaluation predicts, the prediction first; default: those of :func:`heads_of`.

    Attributes:
        task: what the labels mean.
        classes: of the last evaluation, for classes: their table and confusion
            (:func:`~deepmlf_llm.tasks.class_metrics.class_table`), which a log of numbers cannot hold.
    """

    def __init__(self, config: DeepMLFConfig, heads: Sequence[str] | None = None) -> None:
        self.heads = heads_of(config) if heads is None else heads
        self.task = task_of(config.dataset, config.task)
        self.unimodal = unimodal_terms(config.unimodal_targets)
        self.classes: dict[str, Any] | None = None

    def __call__(self, evaluated: Any) -> dict[str, float]:
        labels, alone = evaluated.label_ids, None
        if isinstance(labels, tuple):
            labels, alone = labels
        by_head = dict(zip(self.heads, evaluated.predictions, strict=True))
        if isinstance(self.task, ClassificationTask):
            self.classes = class_table(by_head["polarity"], labels, self.task)
        metrics = task_metrics(by_head["polarity"], labels, self.task)
        for head in (*HEADS[1:], *READOUTS):
            if head in by_head:
                own = task_metrics(by_head[head], labels, self.task)
                metrics |= {f"{head}/{name}": value for name, value in own.items()}
        return metrics if alone is None else metrics | self._against_own(by_head, alone)

    def _against_own(self, by_head: Mapping[str, Any], labels: Any) -> dict[str, float]:
        """Metrics of heads that learn from a modality's own labels, over the utterances that have one."""
        metrics: dict[str, float] = {}
        for term, suffix in self.unimodal.items():
            column = labels[:, UNIMODAL_LABELS.index(suffix)]
            rated = ~np.isnan(column)
            if rated.any():
                values = task_metrics(by_head[f"{term}{_SAYS}"][rated], column[rated], self.task)
                metrics |= {f"{term}_own/{name}": value for name, value in values.items()}
        return metrics


def split_metrics(logged: Mapping[str, float], prefix: str) -> dict[str, dict[str, Any]]:
    """``{"metrics": of the prediction, "heads": {"text": {...}, ...}}`` from what ``evaluate`` returned."""
    metrics: dict[str, float] = {}
    heads: dict[str, dict[str, float]] = {}
    for key, value in logged.items():
        name = key.removeprefix(f"{prefix}_")
        head, slash, metric = name.rpartition("/")
        if slash:
            heads.setdefault(head.removesuffix(_SAYS), {})[metric] = value
        elif name in METRIC_DEFINITIONS:
            metrics[name] = value
    return {"metrics": metrics, "heads": heads}
