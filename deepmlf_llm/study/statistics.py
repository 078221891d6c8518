"""What several seeds allow one to say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from scipy.special import stdtrit  # Student's t, inverted; scipy.stats takes seconds to load

from deepmlf_llm.statistics.seeds import CONFIDENCE, Interval, t_interval
from deepmlf_llm.study.configurations import NOTHING, OWN, Configuration

FIT_POINTS = 4
"""Fewer different x than this carry no curve."""
POWER = 0.8
"""Probability with which a planned number of seeds shows what is there."""


SEEDS_COLUMN = (
    "The last column: seeds that would show a change four times in five that these do not show, if it is as large as "
    "seen and all seeds spread as these do; with few seeds it is a guess."
)


@dataclass(frozen=True)
class Effect:
    """What changing one setting changed, all else equal.

    Args:
        axis, before, after: the setting and its two values.
        pairs: configurations that differ in it alone.
        change: of the metric, after minus before: per seed the mean over the pairs, then over seeds.
    """

    axis: str
    before: Any
    after: Any
    pairs: int
    change: Interval


def effects(
    configurations: Sequence[Configuration], axes: Sequence[str], metric: str, split: str = "test"
) -> list[Effect]:
    """Neighbouring values of each axis, compared over the configurations and seeds that have both."""
    found = []
    for axis in axes:
        values = _in_order({c.values.get(axis) for c in configurations})
        if axis == "base":  # by size
            values.sort(key=lambda base: next(c.lm_parameters for c in configurations if c.values.get("base") == base))
        for before, after in pairwise(values):
            pairs = [
                (a, b)
                for a in configurations
                for b in configurations
                if a.values.get(axis) == before
                and b.values.get(axis) == after
                and a.rest(axis, axes) == b.rest(axis, axes)
            ]
            if effect := paired(axis, before, after, pairs, metric, split):
                found.append(effect)
    return found


def paired(
    axis: str,
    before: Any,
    after: Any,
    pairs: Sequence[tuple[Configuration, Configuration]],
    metric: str,
    split: str = "test",
) -> Effect | None:
    """The effect over given pairs; None where no seed is common.

    Pairs count only where they have all seeds: else seeds would average over different configurations.
    """
    both = [(a.by_seed(metric, split), b.by_seed(metric, split)) for a, b in pairs]
    seeds = sorted(set().union(*(a.keys() & b.keys() for a, b in both))) if both else []
    whole = [(a, b) for a, b in both if all(seed in a and seed in b for seed in seeds)]
    if not seeds or not whole:
        return None
    changes = [math.fsum(b[seed] - a[seed] for a, b in whole) / len(whole) for seed in seeds]
    return Effect(axis, before, after, len(whole), t_interval(changes))


def _in_order(values: set[Any]) -> list[Any]:
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    return sorted(values) if numbers else sorted(values, key=lambda value: (value not in (NOTHING, OWN), str(value)))


def seeds_to_tell(change: Interval, size: float | None = None, most: int = 1000) -> int | None:
    """How many seeds would show a change of ``size`` four times in five, if they spread as these do.

    With n seeds of deviation s the interval excludes zero with a probability of 80 % where the change is
    ``(t_.975 + t_.8) s / sqrt(n)``, t with n - 1 degrees of freedom. The deviation of few seeds is itself uncertain.

    Args:
        change: over the seeds there are.
        size: default: of the change that was seen.
        most: None beyond that many.
    """
    size = abs(change.mean) if size is None else size
    if change.half is None or not size:
        return None
    deviation = change.half * math.sqrt(change.n) / _quantile(change.n, (1 + CONFIDENCE) / 2)
    for n in range(2, most + 1):
        if (_quantile(n, (1 + CONFIDENCE) / 2) + _quantile(n, POWER)) * deviation / math.sqrt(n) < size:
            return n
    return None


def reading(change: Interval) -> str:
    """What a report says of a change."""
    if change.half is None:
        return "one seed: nothing can be said"
    return "a difference is shown" if change.excludes_zero else "no difference is shown"


def seeds_named(change: Interval) -> str:
    """:func:`seeds_to_tell` in words; nothing where these seeds have told it."""
    if change.excludes_zero:
        return ""
    need = seeds_to_tell(change)
    return "cannot be said" if change.half is None else "over 1000" if need is None else str(need)


def signed(change: Interval) -> str:
    """``-0.034 ± 0.012``"""
    return f"{change.mean:+.3f}" + ("" if change.half is None else f" ± {change.half:.3f}")


def _quantile(n: int, share: float) -> float:
    """Of Student's t for n values."""
    return float(stdtrit(n - 1, share))


def different(xs: Sequence[float]) -> int:
    """How many x lie more than 5 % above the next lower one: two clusters are two places, whatever their size."""
    ordered = sorted(xs)
    return 1 + sum(after > 1.05 * before for before, after in pairwise(ordered))


def front(points: Sequence[tuple[float, float]], higher: bool) -> list[int]:
    """Which points (cost, quality) no other one beats in both, by rising cost.

    Args:
        points: of each configuration.
        higher: whether more of the quality is better.
    """
    sign = -1 if higher else 1
    best, kept = math.inf, []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], sign * points[i][1])):
        if sign * points[i][1] < best:
            best = sign * points[i][1]
            kept.append(i)
    return kept


@dataclass(frozen=True)
class Fit:
    """``y = a + b log10(x)``, least squares, or with ``power`` the same of log10(y), a power law; ``slope`` with its
    interval."""

    a: float
    slope: Interval
    power: bool = False

    def at(self, x: float) -> float:
        y = self.a + self.slope.mean * math.log10(x)
        return 10**y if self.power else y


def fit_log(xs: Sequence[float], ys: Sequence[float], power: bool = False) -> Fit | None:
    """None below :data:`FIT_POINTS` clearly different, positive x; of a power law also where a y is not positive."""
    if min(xs) <= 0 or different(xs) < FIT_POINTS or (power and min(ys) <= 0):
        return None
    if power:
        ys = [math.log10(y) for y in ys]
    n, us = len(xs), [math.log10(x) for x in xs]
    middle, mean = math.fsum(us) / n, math.fsum(ys) / n
    spread = math.fsum((u - middle) ** 2 for u in us)
    slope = math.fsum((u - middle) * (y - mean) for u, y in zip(us, ys, strict=True)) / spread
    rest = math.fsum((y - mean - slope * (u - middle)) ** 2 for u, y in zip(us, ys, strict=True))
    half = float(stdtrit(n - 2, (1 + CONFIDENCE) / 2)) * math.sqrt(rest / (n - 2) / spread)
    return Fit(mean - slope * middle, Interval(slope, half, n), power)
