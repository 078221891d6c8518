"""Two studies against each other: the cells that both have, and what changed between them.

Cells are matched by their settings. What is one value in all of the first study and another in all of the second (other
training length, other code) is what the studies differ in: it is named, and left out of the match.
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
from deepmlf_llm.study.configurations import axis_name
from deepmlf_llm.study.directory import StudyDirectory
from deepmlf_llm.study.results import read_all
from deepmlf_llm.tasks.metrics import METRIC_DEFINITIONS
from deepmlf_llm.training.keys import all_keys

_NOT_COMPARED = ("seed", "data")  # seeds pair the cells; data are compared by content, wherever they lie


@dataclass(frozen=True)
class Match:
    """One configuration of both studies.

    Args:
        values: setting -> value, of those that vary.
        first, second: seed -> metric.
        change: second minus first.
        paired: over the seeds that both have; else of two independent means (Welch).
    """

    values: dict[str, Any]
    first: dict[int, float]
    second: dict[int, float]
    change: Interval
    paired: bool


@dataclass(frozen=True)
class StudyComparison:
    """All of it.

    Args:
        names: of the two studies.
        metric, split: that are compared.
        differs: what all cells of one have and all of the other have otherwise: (setting, first, second).
        axes: settings that vary.
        matches: configurations of both.
        overall: over the matches, per seed first where seeds pair; None with one match.
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
    cells: list[dict[str, Any]]
    settings: list[dict[str, Any]] = field(default_factory=list)


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
    differs, axes = _differences(a, b)
    grouped = [_grouped(study, axes, metric, split) for study in (a, b)]
    keys = [key for key in grouped[0] if key in grouped[1]]
    if not keys:
        raise DataError(_nothing_shared(a, b, axes, metric, split))
    matches = [_match(json.loads(key), grouped[0][key], grouped[1][key]) for key in keys]
    only = tuple(sum(len(values) for key, values in own.items() if key not in keys) for own in grouped)
    code = tuple(sorted({cell["run_info"]["code"] for cell in study.cells}) for study in (a, b))
    if code[0] != code[1]:
        differs.append(("code version", ", ".join(code[0]), ", ".join(code[1])))
    return StudyComparison(
        (a.name, b.name), metric, split, differs, axes, matches, _overall(matches), (only[0], only[1])
    )


def _open(path: Path) -> _Study:
    directory = StudyDirectory(path)
    study = directory.read()
    cells = [cell for cell in read_all(directory, directory.planned()) if cell["status"] == "finished"]
    if not cells:
        raise DataError(f"{shown(path)}: no cell of the study has finished; nothing to compare")
    return _Study(f"{study['name']} ({shown(path)})", study["metric"], cells, [_settings(cell) for cell in cells])


def _settings(cell: Mapping[str, Any]) -> dict[str, Any]:
    """As given, and what the plan found out about the base: a stand-in is another base."""
    run = cell["run_info"]
    facts = {name: run["values"][name] for name in ("base", "layers") if name in run["values"]}
    given = {name: value for name, value in run["settings"].items() if name not in ("base_model", *_NOT_COMPARED)}
    return {**facts, **run["values"], **given, "processes": run["processes"]}


def _same_data(a: _Study, b: _Study) -> None:
    """By the hashes of the splits, which every finished cell states."""
    found = [{json.dumps(_splits(cell), sort_keys=True) for cell in study.cells} for study in (a, b)]
    if found[0] != found[1]:
        raise DataError(
            f"{a.name} and {b.name} were measured on different data (the hashes of their splits differ); metrics of "
            "different utterances cannot be compared"
        )


def _splits(cell: Mapping[str, Any]) -> Any:
    data = cell["meta_info"]["data"]
    splits = data.get("splits", {})
    return {name: split.get("sha256") for name, split in splits.items()} or data.get("name")


def _differences(a: _Study, b: _Study) -> tuple[list[tuple[str, str, str]], list[str]]:
    """What sets the studies apart, and the settings that vary inside one of them."""
    names = list(dict.fromkeys(name for study in (a, b) for given in study.settings for name in given))
    differs, axes = [], []
    for name in names:
        mine, theirs = ({_as_text(_value(given, name)) for given in study.settings} for study in (a, b))
        if len(mine) == len(theirs) == 1:
            if mine != theirs:
                differs.append((name, mine.pop(), theirs.pop()))
        else:
            axes.append(name)
    return differs, axes


def _value(given: Mapping[str, Any], name: str) -> Any:
    """A setting that a study leaves out has its default."""
    if name in given or name not in all_keys():
        return given.get(name)
    return all_keys()[name].default


def _as_text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _grouped(study: _Study, axes: Sequence[str], metric: str, split: str) -> dict[str, dict[int, float]]:
    """Configuration -> seed -> metric, where it is defined."""
    found: dict[str, dict[int, float]] = {}
    for cell, given in zip(study.cells, study.settings, strict=True):
        value = cell["metrics"][split].get(metric)
        if value is not None:
            key = _as_text({name: _value(given, name) for name in axes})
            found.setdefault(key, {})[cell["run_info"]["seed"]] = value
    return found


def _nothing_shared(a: _Study, b: _Study, axes: Sequence[str], metric: str, split: str) -> str:
    parts = []
    for name in axes:
        mine, theirs = ({_as_text(_value(given, name)) for given in study.settings} for study in (a, b))
        if not mine & theirs:
            parts.append(f"{axis_name(name)}: {', '.join(sorted(mine))} against {', '.join(sorted(theirs))}")
    why = "; ".join(parts) or f"no combination of {', '.join(map(axis_name, axes))} with a {split} {metric} is in both"
    return f"{a.name} and {b.name} share no cell: {why}"


def _match(values: dict[str, Any], first: dict[int, float], second: dict[int, float]) -> Match:
    seeds = sorted(first.keys() & second.keys())
    if seeds:
        change = t_interval([second[seed] - first[seed] for seed in seeds])
        return Match(values, {s: first[s] for s in seeds}, {s: second[s] for s in seeds}, change, True)
    return Match(values, first, second, welch(list(first.values()), list(second.values())), False)


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
    return _match({}, *means).change


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
