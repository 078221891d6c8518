"""What a data set's labels mean: numbers of a scale (:mod:`.regression`) or classes (:mod:`.classification`), which
name means which task (:mod:`.registry`), and metrics (:mod:`.metrics`, :mod:`.class_metrics`)."""

from deepmlf_llm.tasks.class_metrics import class_table
from deepmlf_llm.tasks.classification import ClassificationTask
from deepmlf_llm.tasks.metrics import METRIC_DEFINITIONS, polarity_label, polarity_metrics, task_metrics
from deepmlf_llm.tasks.registry import TASKS, read_task, task_of
from deepmlf_llm.tasks.regression import RegressionTask

__all__ = [
    "METRIC_DEFINITIONS",
    "TASKS",
    "ClassificationTask",
    "RegressionTask",
    "class_table",
    "polarity_label",
    "polarity_metrics",
    "read_task",
    "task_metrics",
    "task_of",
]
