"""Metrics of every head from what an evaluation predicted, as Trainer takes and logs them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepmlf_llm.tasks.metrics import METRIC_DEFINITIONS, polarity_metrics

HEADS = ("polarity", "fusion_polarity", "text_polarity", "av_polarity")


def compute_metrics_for(dataset: str) -> Any:
    """What Trainer calls after an evaluation: the data set's metrics of the prediction, and of each other head."""

    def compute(evaluated: Any) -> dict[str, float]:
        labels = evaluated.label_ids
        by_head = dict(zip(HEADS, evaluated.predictions, strict=True))
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
