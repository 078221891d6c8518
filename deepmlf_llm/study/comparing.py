"""Two studies against each other: the cells that both have, and what changed between them.

Cells are matched by their settings. What is one value in all of the first study and another in all of the second (other
training length, other code) is what the studies differ in: it is named, and left out of the match. So is a setting that
comes with the base model. Cells of the method and baselines are matched apart, for a baseline has few of the settings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scipy.special import stdtrit

from deepmlf_llm.errors import ConfigError, DataError
from deepmlf_llm.paths import shown
from deepmlf_llm.statistics.seeds import CONFIDENCE, Interval, t_interval
from deepmlf_llm.study.configurations import OWN, axis_name
from deepmlf_llm.study.differences import Cell, as_text, differences
from deepmlf_llm.study.directory import StudyDirectory
from deepmlf_llm.study.grid import BASELINE
from deepmlf_llm.study.results import read_all
from deepmlf_llm.tasks.metrics import METRIC_DEFINITIONS


@dataclass(frozen=True)
class Match:
    """One configuration of both studies.

    Args:
        values: setting -> value, of those that vary.
        named: the same as the report calls it: "own" where it is what the base model brings, in both studies.
        baseline: whether it is a baseline.
        first, second: seed -> metric.
        change: second minus first.
        paired: over the seeds that both have; else of two independent means (Welch).
    """

    values: dict[str, Any]
    first: dict[int, float]
    second: dict[int, float]
    change: Interval
    paired: bool
    named: dict[str, Any] = field(default_factory=dict)
    baseline: bool = False


@dataclass(frozen=True)
class StudyComparison:
    """All of it.

    Args:
        names: of the two studies.
        metric, split: that are compared.
        differs: what all cells of one have and all of the other have otherwise, at each base model where it comes
            with that: (setting, first, second).
        axes: settings that vary.
        matches: configurations of both, the baselines last.
        overall: over the matches that are no baselines, per seed first where seeds pair; None with one match.
        only: cells of each study whose configuration the other has not.
    """

    names: tuple[str, str]
    metric: str
    split: str
    differs: list[tuple[str, str, str]]
    axes: list[str]
    matches: list[Match]
    overall: Interval | None
    only: tuple[int, int]


@dataclass
class _Study:
    name: str
    metric: str
    cells: list[Cell]

    def of(self, baselines: bool) -> list[Cell]:
        """The cells of the method, or the baselines."""
        return [cell for cell in self.cells if (BASELINE in cell.values) == baselines]


@dataclass
class _Side:
    """Cells of one configuration in one study: seed -> metric, and what the rows of the grid name."""

    by_seed: dict[int, float] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


def compare_studies(first: Path, second: Path, metric: str | None = None, split: str = "test") -> StudyComparison:
    """Compares finished cells.

    Args:
        first: folder of the study that the other is compared with.
        second: folder of the other.
        metric: default: that of the first study.
        split: "test" or "validation".

    Raises:
        RunError: no study there.
        DataError: nothing is finished, the data differ, or no cell is in both.
        ConfigError: an unknown metric.
    """
    a, b = _open(first), _open(second)
    metric = metric or a.metric
    if metric not in METRIC_DEFINITIONS:
        raise ConfigError(f"--metric {metric}: expected one of {', '.join(METRIC_DEFINITIONS)}")
    _same_data(a, b)
    differs: list[tuple[str, str, str]] = []
    axes: list[str] = []
    matches: list[Match] = []
    only = [0, 0]
    for baselines in (False, True):
        cells = a.of(baselines), b.of(baselines)
        if not any(cells):
            continue
        beside = baselines and bool(a.of(False) or b.of(False))  # then the kind of baseline sets no study apart
        apart, varying = differences(*cells, [*axes, BASELINE] if beside else [])
        differs += [row for row in apart if row[0] not in {name for name, _, _ in differs}]
        told = {name for name, _, _ in differs}
        varying = [name for name in (*varying, *[BASELINE] * baselines) if name not in told]
        axes += [name for name in varying if name not in axes]
        one, two = (_grouped(side, varying, metric, split) for side in cells)
        matches += [_match(json.loads(key), one[key], two[key], baselines) for key in one if key in two]
        for number, (own, other) in enumerate(((one, two), (two, one))):
            only[number] += sum(len(side.by_seed) for key, side in own.items() if key not in other)
    if not matches:
        raise DataError(_nothing_shared(a, b, axes, metric, split))
    code = tuple(sorted({cell.record["run_info"]["code"] for cell in study.cells}) for study in (a, b))
    if code[0] != code[1]:
        differs.append(("code version", ", ".join(code[0]), ", ".join(code[1])))
    overall = _overall([match for match in matches if not match.baseline])
    return StudyComparison((a.name, b.name), metric, split, differs, axes, matches, overall, (only[0], only[1]))


def _open(path: Path) -> _Study:
    directory = StudyDirectory(path)
    study = directory.read()
    cells = [cell for cell in read_all(directory, directory.planned()) if cell["status"] == "finished"]
    if not cells:
        raise DataError(f"{shown(path)}: no cell of the study has finished; nothing to compare")
    return _Study(f"{study['name']} ({shown(path)})", study["metric"], [Cell(cell) for cell in cells])


def _same_data(a: _Study, b: _Study) -> None:
    """By the hashes of the splits, which every finished cell states."""
    found = [{json.dumps(_splits(cell.record), sort_keys=True) for cell in study.cells} for study in (a, b)]
    if found[0] != found[1]:
        raise DataError(
            f"{a.name} and {b.name} were measured on different data (the hashes of their splits differ); metrics of "
            "different utterances cannot be compared"
        )


def _splits(cell: Mapping[str, Any]) -> Any:
    data = cell["meta_info"]["data"]
    splits = data.get("splits", {})
    return {name: split.get("sha256") for name, split in splits.items()} or data.get("name")


def _grouped(cells: Sequence[Cell], axes: Sequence[str], metric: str, split: str) -> dict[str, _Side]:
    """Configuration -> its cells, where the metric is defined."""
    found: dict[str, _Side] = {}
    for cell in cells:
        value = cell.record["metrics"][split].get(metric)
        if value is not None:
            key = as_text({name: cell.value(name) for name in axes})
            side = found.setdefault(key, _Side(values=cell.values))
            side.by_seed[cell.record["run_info"]["seed"]] = value
    return found


def _nothing_shared(a: _Study, b: _Study, axes: Sequence[str], metric: str, split: str) -> str:
    kind = not (a.of(False) and b.of(False))
    sides = a.of(kind), b.of(kind)
    if not all(sides):
        return f"{a.name} and {b.name} share no cell: one has only baselines, the other has none"
    parts = []
    for name in axes:
        mine, theirs = ({cell.text(name) for cell in cells} for cells in sides)
        if not mine & theirs:
            parts.append(f"{axis_name(name)}: {', '.join(sorted(mine))} against {', '.join(sorted(theirs))}")
    why = "; ".join(parts) or f"no combination of {', '.join(map(axis_name, axes))} with a {split} {metric} is in both"
    return f"{a.name} and {b.name} share no cell: {why}"


def _match(values: dict[str, Any], one: _Side, two: _Side, baseline: bool) -> Match:
    own = {name for name in values if one.values.get(name) == two.values.get(name) == OWN}
    named = {name: OWN if name in own else value for name, value in values.items()}
    first, second = one.by_seed, two.by_seed
    seeds = sorted(first.keys() & second.keys())
    if seeds:
        first, second = ({seed: side[seed] for seed in seeds} for side in (first, second))
    return Match(values, first, second, _change(first, second), bool(seeds), named, baseline)


def _change(first: Mapping[int, float], second: Mapping[int, float]) -> Interval:
    """Second minus first, paired over the seeds that both have."""
    if seeds := sorted(first.keys() & second.keys()):
        return t_interval([second[seed] - first[seed] for seed in seeds])
    return welch(list(first.values()), list(second.values()))


def _overall(matches: Sequence[Match]) -> Interval | None:
    """Over all configurations: a seed's mean first, for its configurations share their chance."""
    if len(matches) < 2:
        return None
    sides = [[getattr(match, side) for match in matches] for side in ("first", "second")]
    seeds = [sorted(set.intersection(*(set(values) for values in side))) for side in sides]
    means = [
        {seed: math.fsum(values[seed] for values in side) / len(side) for seed in common}
        for side, common in zip(sides, seeds, strict=True)
    ]
    if not all(means):
        return None
    return _change(*means)


def welch(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Mean of ``second`` minus mean of ``first``, of unequal spread; Welch's interval (Biometrika 34, 1947)."""
    one, two = t_interval(first), t_interval(second)
    mean, n = two.mean - one.mean, min(one.n, two.n)
    if n < 2:
        return Interval(mean, None, n)
    parts = [_variance(values) / len(values) for values in (first, second)]
    if not sum(parts):
        return Interval(mean, 0.0, n)
    free = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (first, second), strict=True)
    )
    return Interval(mean, float(stdtrit(free, (1 + CONFIDENCE) / 2)) * math.sqrt(sum(parts)), n)


def _variance(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
