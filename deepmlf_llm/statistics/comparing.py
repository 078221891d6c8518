"""Runs against each other on the same utterances: differences with intervals, p-values, and how many were looked at."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from deepmlf_llm.errors import DataError, Problems
from deepmlf_llm.paths import shown
from deepmlf_llm.statistics.bootstrap import SEED, Drawn, draw, interval, p_value
from deepmlf_llm.statistics.predictions import FILE, POLARITY, Predictions, read_predictions
from deepmlf_llm.statistics.sums import MetricSums
from deepmlf_llm.tasks.metrics import higher_is_better

RESAMPLES = 10_000
TEXT_HEAD = "text_polarity"
_FEW = 3  # utterances a message names


@dataclass(frozen=True)
class Entry:
    """One thing to compare: a run, or several that differ in their seed alone.

    Attributes:
        name: as it was given.
        seeds: name of each run.
        runs: its predictions of one split.
    """

    name: str
    seeds: Sequence[str]
    runs: Sequence[Predictions]


@dataclass(frozen=True)
class Measured:
    """One metric of one entry: over its runs, and the interval over utterances and runs."""

    mean: float
    deviation: float | None
    best: float
    worst: float
    interval: list[float] | None


@dataclass(frozen=True)
class Row:
    """An entry's metrics; ``head``: of the prediction ("polarity"), or of one head alone."""

    name: str
    head: str
    runs: int
    metrics: dict[str, Measured]


@dataclass(frozen=True)
class Difference:
    """What changes from the reference to another entry, in one metric."""

    reference: str
    other: str
    metric: str
    difference: float
    interval: list[float] | None
    p: float | None
    p_adjusted: float | None
    seeds_paired: bool

    @property
    def reading(self) -> str:
        """In words: what the adjusted p-value allows to say."""
        if self.p_adjusted is None:
            return "nothing can be said"
        if self.p_adjusted >= 0.05:
            return "no difference is shown"
        return "better" if (self.difference > 0) == higher_is_better(self.metric) else "worse"


@dataclass(frozen=True)
class Comparison:
    """All of it.

    Attributes:
        dataset, split: label rule and split.
        utterances: how many.
        rows: metrics of each entry, and of the text head of those that have one.
        differences: of each entry but the first from the first; ``p_adjusted`` by Holm over all of them, or over those
            of their metric.
        resamples, seed: of the bootstrap.
    """

    dataset: str
    split: str
    utterances: int
    rows: list[Row]
    differences: list[Difference]
    resamples: int
    seed: int

    @property
    def comparisons(self) -> int:
        """How many p-values there are."""
        return sum(d.p is not None for d in self.differences)


def open_entry(name: str, split: str | None = None) -> Entry:
    """Finds the predictions that an argument stands for.

    Args:
        name: a directory of a run, a directory of several (``seed-*``), a file of predictions, or several of these with
            commas between them.
        split: default: "test", or the only one there is.

    Raises:
        DataError: nothing there, or a run without predictions.
    """
    places = [Path(name)] if Path(name).exists() else [Path(part) for part in name.split(",") if part]
    files = [file for place in places for file in _files(place)]
    if not files:
        raise DataError(f"{name!r}: expected a run, a directory of seeds or a file of predictions")
    runs = [read_predictions(file, split) for file in files]
    return Entry(name, [file.parent.name if file.name == FILE else file.stem for file in files], runs)


def _files(place: Path) -> list[Path]:
    if not place.exists():
        raise DataError(f"{shown(place)}: no such file or directory")
    if place.is_file():
        return [place]
    if (place / FILE).is_file():
        return [place / FILE]
    seeds = sorted((path for path in place.glob("seed-*") if path.is_dir()), key=_natural)
    if not seeds:
        raise DataError(
            f"{shown(place)}: neither {FILE} nor seed-* in it: no finished run, one of an earlier version, or made "
            "without pyarrow; `deepmlf evaluate --output NAME.json` writes NAME.parquet"
        )
    unfinished = [path.name for path in seeds if not (path / FILE).is_file()]
    if unfinished:
        raise DataError(f"{shown(place)}: no {FILE} in {', '.join(unfinished)}: finish these runs, or move them away")
    return [path / FILE for path in seeds]


def _natural(path: Path) -> list[tuple[int, str]]:
    """seed-2 before seed-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def compare(
    entries: Sequence[Entry],
    head: str = POLARITY,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    by_metric: bool = False,
) -> Comparison:
    """Compares every entry with the first, over the same resamples of utterances and of seeds.

    Seeds are drawn too where an entry has several; where two entries have the same seeds, together, else apart.

    Args:
        entries: at least one.
        head: "polarity" (the prediction), or one head alone.
        resamples, seed: of the bootstrap.
        by_metric: p-values are adjusted over the entries alone, each metric by itself: for a table in which one metric
            counts, named before it was looked at.

    Raises:
        DataError: the utterances, their labels or the label rule differ, or there is no such head.
    """
    first = entries[0]
    runs = _aligned(entries)
    reference = first.runs[0]
    sums = [[MetricSums.of(run.head(head), run.labels, run.rules) for run in group] for group in runs]
    drawn = _each(sums, resamples, seed)
    rows = [[_row(entry, head, of_entry)] for entry, of_entry in zip(entries, drawn, strict=True)]
    has_text = [head == POLARITY and all(TEXT_HEAD in run.heads for run in group) for group in runs]
    places = [place for place, there in enumerate(has_text) if there]
    alone = [[MetricSums.of(run.head(TEXT_HEAD), run.labels, run.rules) for run in runs[place]] for place in places]
    for place, of_text in zip(places, _each(alone, resamples, seed), strict=True):
        rows[place].append(_row(entries[place], TEXT_HEAD, of_text))
    found = []
    for entry, of_group, of_entry in zip(entries[1:], sums[1:], drawn[1:], strict=True):
        paired = len(first.runs) > 1 and list(first.seeds) == list(entry.seeds)
        both = [drawn[0], of_entry] if paired else draw([sums[0], of_group], False, resamples, seed)
        found += _differences(first, entry, both, paired)
    told = [row for of_entry in rows for row in of_entry]
    found = _adjusted(found, by_metric)
    return Comparison(reference.dataset, reference.split, len(reference.ids), told, found, resamples, seed)


def _each(groups: Sequence[Sequence[MetricSums]], resamples: int, seed: int) -> list[Drawn]:
    """The draws of each group by itself. Groups of as many runs meet the same utterances and the same runs in a
    resample, so those of the same seeds are drawn together."""
    found: dict[int, Drawn] = {}
    for runs in dict.fromkeys(map(len, groups)):
        places = [place for place, group in enumerate(groups) if len(group) == runs]
        drawn = draw([groups[place] for place in places], True, resamples, seed)
        found |= dict(zip(places, drawn, strict=True))
    return [found[place] for place in range(len(groups))]


def _row(entry: Entry, head: str, drawn: Drawn) -> Row:
    metrics = {}
    for name, values, resampled in zip(drawn.names, drawn.measured, drawn.resampled, strict=True):
        low, high = float(values.min()), float(values.max())
        best, worst = (high, low) if higher_is_better(name) else (low, high)
        deviation = float(values.std(ddof=1)) if len(values) > 1 else None
        metrics[name] = Measured(float(values.mean()), deviation, best, worst, interval(resampled))
    return Row(entry.name, head, len(entry.runs), metrics)


def _differences(first: Entry, other: Entry, drawn: Sequence[Drawn], paired: bool) -> list[Difference]:
    a, b = drawn
    changes = b.resampled - a.resampled
    measured = b.measured.mean(axis=1) - a.measured.mean(axis=1)
    return [
        Difference(first.name, other.name, name, float(value), interval(row), p_value(row), None, paired)
        for name, value, row in zip(a.names, measured, changes, strict=True)
    ]


def _adjusted(found: Sequence[Difference], by_metric: bool) -> list[Difference]:
    families: dict[str, list[float]] = {}
    for d in found:
        if d.p is not None:
            families.setdefault(d.metric if by_metric else "", []).append(d.p)
    adjusted = {family: iter(holm(p_values)) for family, p_values in families.items()}
    return [d if d.p is None else replace(d, p_adjusted=next(adjusted[d.metric if by_metric else ""])) for d in found]


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted so that, of all true nulls among them, one is refused by chance in 5 % at most (Holm, "A simple
    sequentially rejective multiple test procedure", 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = [0.0] * len(order), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def _aligned(entries: Sequence[Entry]) -> list[list[Predictions]]:
    """All runs with the utterances in the order of the first run's.

    Raises:
        DataError: they are not of the same utterances, with the same labels.
    """
    reference = entries[0].runs[0]
    problems = Problems(DataError, f"these cannot be compared with {entries[0].name}")
    groups = []
    for entry in entries:
        group = []
        for seed, run in zip(entry.seeds, entry.runs, strict=True):
            where = entry.name if len(entry.runs) == 1 else f"{entry.name} ({seed})"
            aligned, problem = _in_order_of(reference, run)
            problems.check(not problem, f"{where}: {problem}")
            group.append(aligned)
        groups.append(group)
    problems.raise_if_any()
    return groups


def _in_order_of(reference: Predictions, run: Predictions) -> tuple[Predictions, str]:
    """``run`` with its utterances in the reference's order, and what keeps it from being compared (or "")."""
    if unlike := run.rules.differences(reference.rules):
        rules = f" ({unlike})" if run.task or reference.task else ""
        return run, f"labels of {run.dataset!r}, not of {reference.dataset!r}{rules}"
    wanted, given = list(reference.ids), list(run.ids)
    if wanted != given:
        if set(wanted) != set(given):
            lacks = [identity for identity in wanted if identity not in set(given)]
            extra = [identity for identity in given if identity not in set(wanted)]
            differs = [f"{len(ids)} {what}: {_some(ids)}" for ids, what in ((lacks, "missing"), (extra, "more")) if ids]
            return run, f"other utterances ({'; '.join(differs)})"
        if len(set(given)) < len(given) or len(given) != len(wanted):
            return run, "ids that stand more than once, in another order"
        place = {identity: row for row, identity in enumerate(given)}
        rows = [place[identity] for identity in wanted]
        heads = {name: values[rows] for name, values in run.heads.items()}
        run = Predictions(run.dataset, run.split, wanted, run.labels[rows], heads, run.task)
    differing = np.flatnonzero((run.labels != reference.labels).reshape(len(wanted), -1).any(axis=1))
    if len(differing):
        row = int(differing[0])
        first = f"that of {wanted[row]!r} is {run.labels[row]}, not {reference.labels[row]}"
        return run, f"{len(differing)} other labels ({first})"
    return run, ""


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _FEW} more" if len(ids) > _FEW else ""
    return ", ".join(map(repr, ids[:_FEW])) + more
