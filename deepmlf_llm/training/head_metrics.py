"""Metrics of every head from what an evaluation predicted, as Trainer takes and logs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.tasks.metrics import METRIC_DEFINITIONS, polarity_metrics

_AV_HEAD = "av_polarity"
HEADS = ("polarity", "fusion_polarity", "text_polarity", _AV_HEAD)
READOUTS = ("task_polarity", "verbalised_polarity")
"""What the prediction is the mean of, with ``readout="both"``; else there are none."""


def heads_of(config: DeepMLFConfig) -> tuple[str, ...]:
    """The outputs that metrics are made of; a model that reads text alone has no AV head."""
    own = tuple(head for head in HEADS if head != _AV_HEAD or not config.reads_text_alone)
    return (*own, *READOUTS) if config.readout == "both" else own


def compute_metrics_for(dataset: str, heads: Sequence[str] = HEADS) -> Any:
    """What Trainer calls after an evaluation: the data set's metrics of the prediction, and of each other head.

    Args:
        dataset: whose metrics.
        heads: what an evaluation predicts, the prediction first; see :func:`heads_of`.
    """

    def compute(evaluated: Any) -> dict[str, float]:
        labels = evaluated.label_ids
        by_head = dict(zip(heads, evaluated.predictions, strict=True))
        metrics = polarity_metrics(by_head.pop("polarity"), labels, dataset)
        for head, predictions in by_head.items():
            own = polarity_metrics(predictions, labels, dataset)
            metrics |= {f"{head}/{name}": value for name, value in own.items()}
        return metrics

    return compute


def split_metrics(logged: Mapping[str, float], prefix: str) -> dict[str, dict[str, Any]]:
    """``{"metrics": of the prediction, "heads": {"text": {...}, ...}}`` from what ``evaluate`` returned."""
    metrics: dict[str, float] = {}
    heads: dict[str, dict[str, float]] = {}
    for key, value in logged.items():
        name = key.removeprefix(f"{prefix}_")
        head, slash, metric = name.rpartition("/")
        if slash:
            heads.setdefault(head.removesuffix("_polarity"), {})[metric] = value
        elif name in METRIC_DEFINITIONS:
            metrics[name] = value
    return {"metrics": metrics, "heads": heads}
