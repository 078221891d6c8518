"""What a data set's labels mean: range, bins, names, text case (:mod:`.regression`), and metrics (:mod:`.metrics`)."""

from deepmlf_llm.tasks.metrics import METRIC_DEFINITIONS, polarity_label, polarity_metrics
from deepmlf_llm.tasks.regression import TASKS, RegressionTask, task_of

__all__ = ["METRIC_DEFINITIONS", "TASKS", "RegressionTask", "polarity_label", "polarity_metrics", "task_of"]
