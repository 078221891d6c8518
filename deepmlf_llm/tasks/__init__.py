"""What a data set's labels mean: range, bins, names, metrics."""

from deepmlf_llm.tasks.metrics import METRIC_DEFINITIONS, polarity_label, polarity_metrics

__all__ = ["METRIC_DEFINITIONS", "polarity_label", "polarity_metrics"]
