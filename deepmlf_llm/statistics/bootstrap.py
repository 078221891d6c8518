"""Bootstrap intervals: how far a metric would move on other utterances, and with other seeds.

Percentile intervals of the bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 13).
Utterances are drawn with replacement; where there are several runs (seeds), those are drawn too, each level by itself
(Owen, "The pigeonhole bootstrap", 2007, https://arxiv.org/abs/0712.1111). A resample is a row of counts, so all metrics
of all resamples are one matrix product (:mod:`.sums`). ``scipy.stats.bootstrap`` draws indices instead, a gather over
utterances for each metric, and no runs beside them; tests compare with it where it applies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepmlf_llm.statistics.seeds import CONFIDENCE
from deepmlf_llm.statistics.sums import MetricSums
from deepmlf_llm.tasks.registry import Task

RESAMPLES, SEED = 2000, 0
_AT_ONCE = 500  # resamples in memory
_DEFINED = 0.9  # share of resamples in which a metric must be defined; else there is no interval


def described(resamples: int = RESAMPLES, seed: int = SEED) -> dict[str, Any]:
    """How intervals were made, for a result file."""
    return {"method": "percentile bootstrap", "confidence": CONFIDENCE, "resamples": resamples, "seed": seed}


def metric_intervals(
    predictions: ArrayLike, labels: ArrayLike, dataset: str | Task, resamples: int = RESAMPLES, seed: int = SEED
) -> dict[str, list[float] | None]:
    """The 95 % interval of each metric of one set of predictions.

    Args:
        predictions, labels: polarity [n]; of classes logits [n x c], and labels as the data hold them.
        dataset: name of a data set, or a task.
        resamples: how many sets of n utterances are drawn.
        seed: of the draws.

    Returns:
        Metric -> [low, high]; None where it cannot be said: a single utterance, or a metric that more than one in ten
        resamples leaves undefined.

    Raises:
        ConfigError, DataError: as :func:`~deepmlf_llm.tasks.metrics.polarity_metrics`.
    """
    sums = MetricSums.of(predictions, labels, dataset)
    drawn = [sums.metrics(counts) for counts in resampled(len(sums), resamples, np.random.default_rng(seed))]
    return dict(zip(sums.names, (interval(row) for row in np.concatenate(drawn, axis=1)), strict=True))


def resampled(n: int, resamples: int, generator: np.random.Generator) -> Iterator[NDArray[np.float64]]:
    """How often each of n things is drawn, in n draws with replacement [b x n], a few hundred resamples at a time."""
    for first in range(0, resamples, _AT_ONCE):
        b = min(_AT_ONCE, resamples - first)
        yield generator.multinomial(n, np.full(n, 1 / n), size=b).astype(np.float64)


def interval(drawn: NDArray[np.float64]) -> list[float] | None:
    """The middle 95 % of what resamples gave [b]; None where too few of them are defined."""
    good = drawn[np.isfinite(drawn)]
    if len(good) < max(2, _DEFINED * len(drawn)):
        return None
    edge = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(good, [edge, 100 - edge])
    return [float(low), float(high)]


def p_value(drawn: NDArray[np.float64]) -> float | None:
    """Two-sided, of no difference: the share of resamples on the rarer side of 0, doubled. It is below .05 where the
    percentile interval leaves 0 out, up to one resample.

    Args:
        drawn: the difference in each resample [b].
    """
    good = drawn[np.isfinite(drawn)]
    if len(good) < max(2, _DEFINED * len(drawn)):
        return None
    rarer = min(int((good <= 0).sum()), int((good >= 0).sum()))
    return min(1.0, 2 * (rarer + 1) / (len(good) + 1))


@dataclass(frozen=True)
class Drawn:
    """Metrics of one group of runs, as measured and in each resample.

    Attributes:
        names: of the metrics.
        measured: [metrics x runs], on all utterances.
        resampled: mean over the drawn runs [metrics x b].
    """

    names: tuple[str, ...]
    measured: NDArray[np.float64]
    resampled: NDArray[np.float64]


def draw(groups: Sequence[Sequence[MetricSums]], paired: bool, resamples: int, seed: int = SEED) -> list[Drawn]:
    """Resamples of several groups of runs over the same utterances: the same ones are drawn for all of them.

    Args:
        groups: for each the sums of its runs (seeds), all over the same n utterances in one order.
        paired: run i of each group belongs to run i of the others (the same seed): they are drawn together. Else each
            group's runs are drawn by themselves. One run alone is not drawn.
        resamples: how many.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    n = len(groups[0][0])
    blocks: list[list[NDArray[np.float64]]] = [[] for _ in groups]
    for counts in resampled(n, resamples, generator):
        together = _run_weights(len(groups[0]), len(counts), generator) if paired else None
        for block, group in zip(blocks, groups, strict=True):
            weights = _run_weights(len(group), len(counts), generator) if together is None else together
            of_runs = np.stack([sums.metrics(counts) for sums in group])  # [runs x metrics x b]
            block.append(np.einsum("br,rmb->mb", weights, of_runs))
    everything = np.ones((1, n))
    return [
        Drawn(
            group[0].names,
            np.concatenate([sums.metrics(everything) for sums in group], axis=1),
            np.concatenate(block, axis=1),
        )
        for group, block in zip(groups, blocks, strict=True)
    ]


def _run_weights(runs: int, b: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Share of each run in each resample [b x runs]."""
    if runs == 1:
        return np.ones((b, 1))
    return generator.multinomial(runs, np.full(runs, 1 / runs), size=b) / runs
