"""One split through a trainer, for good: metrics, their intervals, and the predictions behind them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepmlf_llm.statistics.bootstrap import metric_intervals
from deepmlf_llm.statistics.plots import write_plots
from deepmlf_llm.statistics.predictions import Predictions, utterance_ids, write_predictions
from deepmlf_llm.training.head_metrics import split_metrics


@dataclass(frozen=True)
class Score:
    """What was measured on one split.

    Attributes:
        metrics: of the prediction.
        heads: head -> its own metrics.
        intervals: metric of the prediction -> its 95 % interval, None where it cannot be said.
        predictions: of every utterance.
        classes: of classes their table and confusion; None: the labels are numbers.
    """

    metrics: Mapping[str, float]
    heads: Mapping[str, Mapping[str, float]]
    intervals: Mapping[str, list[float] | None]
    predictions: Predictions
    classes: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls,
        predictions: Predictions,
        found: Mapping[str, Mapping[str, Any]],
        classes: Mapping[str, Any] | None = None,
    ) -> Score:
        """With the intervals of what was ``found``: ``metrics``, and ``heads`` where there are any."""
        intervals = metric_intervals(predictions.head(), predictions.labels, predictions.rules)
        return cls(found["metrics"], found.get("heads", {}), intervals, predictions, classes)


def score(trainer: Any, split: Any, name: str, dataset: str, prefix: str | None = None) -> Score:
    """Evaluates a split; every process must call it.

    Args:
        trainer: a :class:`~deepmlf_llm.training.trainer.DeepMLFTrainer`.
        split: tokenised.
        name: of it: "valid", "test", ..
        dataset: label rule.
        prefix: of the metrics in the log; default: ``name``.

    Raises:
        DataError, RunError: predictions that are not finite.
    """
    logged = trainer.evaluate(split, metric_key_prefix=prefix or name)
    heads, labels = trainer.predicted
    measure = trainer.split_metrics
    ids = utterance_ids(split.dataset, len(split))
    predictions = Predictions(dataset, name, ids, labels, heads, measure.task.to_dict())
    return Score.of(predictions, split_metrics(logged, prefix or name), measure.classes)


def write_beside(directory: Path, scores: Iterable[Score], drawn: Score, file: str, prefix: str = "") -> list[str]:
    """Writes predictions, and the plots of one split, beside a result.

    Args:
        directory: where.
        scores: of the splits that the file of predictions holds.
        drawn: the one that is drawn.
        file: name of the file of predictions.
        prefix: before the names of the plots.

    Returns:
        Sentences on what is not written, for want of a package.

    Raises:
        FileError: something cannot be written.
    """
    said = [
        write_predictions(directory / file, [score.predictions for score in scores]),
        write_plots(directory, drawn.predictions, prefix),
    ]
    return [sentence for sentence in said if sentence]
