"""Which task a name means: a shipped data set, or a task of one's own, whose rules stand in a file.

::

    name: valence                 name: moods
    range: [0, 10]                classes: [calm, tense, glad]
    bins: [4, 6]                  kind: multi_label
    names: [low, middle, high]    class_weights: none
    text_case: lower

The rules travel: into the manifest of prepared data, the settings of an adapter and of a merged model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deepmlf_llm.errors import ConfigError, Problems, suggest
from deepmlf_llm.reading import read_yaml
from deepmlf_llm.tasks.classification import (
    BALANCED,
    EMOTION,
    EMOTIONS,
    FEWEST_CLASSES,
    MOSEI_EMOTIONS,
    MOST_CLASSES,
    MULTI,
    NO_WEIGHTS,
    SARCASM,
    SINGLE,
    ClassificationTask,
)
from deepmlf_llm.tasks.regression import MOSEI, MOSI, SIMS, SIMS_V2, TEXT_CASES, Bins, RegressionTask

Task = RegressionTask | ClassificationTask

TASKS: dict[str, Task] = {
    task.name: task for task in (MOSI, MOSEI, SIMS, SIMS_V2, EMOTION, EMOTIONS, SARCASM, MOSEI_EMOTIONS)
}
REGRESSION = {name: task for name, task in TASKS.items() if isinstance(task, RegressionTask)}
KINDS = ("regression", SINGLE, MULTI)
FILES = (".yaml", ".yml", ".json")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_OF_BOTH = ("kind", "title", "text_case")
_KEYS: dict[str, tuple[str, ...]] = {"regression": (*_OF_BOTH, "range", "bins", "names")}
_KEYS |= dict.fromkeys((SINGLE, MULTI), (*_OF_BOTH, "classes", "class_weights"))


@dataclass(frozen=True)
class OwnRegression(RegressionTask):
    """A task of one's own whose labels are numbers."""

    def to_dict(self) -> dict[str, Any]:
        """What a file holds of it beside its name."""
        held: dict[str, Any] = {"kind": self.kind, "title": self.title, "range": [self.low, self.high]}
        if isinstance(self.bins, Bins):
            held |= {"bins": list(self.bins.edges), "names": list(self.names)}
        return {**held, "text_case": self.text_case}


def task_of(dataset: str | Task, own: Mapping[str, Any] | None = None) -> Task:
    """The rules of ``dataset``.

    Args:
        dataset: name of a shipped data set or of a task of one's own; a task is returned as it is.
        own: rules that a file holds beside the name (``manifest.task``, ``config.task``): those of a task of one's own,
            or the classes that were found in the data.

    Raises:
        ConfigError: no such data set, the message names the nearest; or rules that are none, all that is wrong with
            them.
    """
    if not isinstance(dataset, str):
        return dataset
    if own is not None:
        return make_task(dataset, own)
    if dataset not in TASKS:
        known = ", ".join(TASKS)
        raise ConfigError(f"dataset={dataset!r}: expected one of {known}{suggest(dataset, TASKS)}")
    return TASKS[dataset]


def regression_of(dataset: str | Task, own: Mapping[str, Any] | None = None) -> RegressionTask:
    """The rules of labels that are numbers of a scale; as :func:`task_of`.

    Raises:
        ConfigError: as there, or labels that are classes.
    """
    task = task_of(dataset, own)
    if not isinstance(task, RegressionTask):
        raise ConfigError(f"dataset={task.name!r}: its labels are {task.describe()}, no numbers of a scale")
    return task


def read_task(path: str | Path) -> Task:
    """A task of one's own from its YAML (or JSON) file; without a ``name`` it has the file's.

    Raises:
        ConfigError: no such file, no mapping, or rules that are none; the message names the file.
    """
    try:
        values = read_yaml(path)
        if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
            raise ConfigError("expected a mapping: range (and bins, names), or classes")
        name = values.pop("name", Path(path).stem)
        if name in TASKS:
            raise ConfigError(f"name: {name!r} is a shipped data set; give the task a name of its own")
        return make_task(name, values)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # a ConfigError is one
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None


def make_task(name: Any, values: Mapping[str, Any]) -> Task:
    """A task from its rules, as files have them; see the head of this module.

    Raises:
        ConfigError: unknown keys, with the nearest known one, or values that are none; all of them.
    """
    problems = Problems(ConfigError, f"task {_shown(name)}")
    good = isinstance(name, str) and bool(_NAME.fullmatch(name))
    problems.check(good, "a name has up to 64 letters, digits, '_', '-' and '.'")
    if not isinstance(values, Mapping):
        raise ConfigError(f"{problems.source}: expected a mapping of rules, not {_shown(values)}")
    kind = values.get("kind", "regression" if "range" in values else SINGLE)
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(f"{problems.source}: kind={_shown(kind)}: expected one of {', '.join(KINDS)}")
    for key in values:
        known = _KEYS[kind]
        near = suggest(str(key), known)
        problems.check(key in known, f"unknown key {_shown(key)}{near}: a {kind} task has {', '.join(known)}")
    case, title = values.get("text_case", "keep"), values.get("title") or name
    problems.check(
        isinstance(case, str) and case in TEXT_CASES,
        f"text_case={_shown(case)}: expected one of {', '.join(TEXT_CASES)}",
    )
    problems.check(_is_word(title), f"title={_shown(title)}: expected a text of one line")
    make = _regression if kind == "regression" else _classification
    task = make(name, values, problems)
    problems.raise_if_any()
    return replace(task, title=title, text_case=case)


def _regression(name: Any, values: Mapping[str, Any], problems: Problems) -> Task:
    shipped = TASKS.get(name) if isinstance(name, str) else None
    problems.check(shipped is None, f"{name!r} is a shipped data set, whose rules its name says; give another name")
    low, high = _range(values.get("range"), problems)
    edges, names = values.get("bins"), values.get("names")
    problems.check((edges is None) == (names is None), "bins and names go together: n edges part n + 1 names")
    bins = None
    if edges is not None and names is not None:
        inner = isinstance(edges, (list, tuple)) and bool(edges) and all(map(_is_number, edges))
        ascending = inner and all(a < b for a, b in zip((low, *edges), (*edges, high), strict=True))
        problems.check(ascending, f"bins={_shown(edges)}: expected ascending numbers inside the range")
        if _named(names, "names", problems) and inner:
            problems.check(
                len(names) == len(edges) + 1,
                f"names: {len(names)} of them, but {len(edges)} edges part {len(edges) + 1}",
            )
        if ascending:
            bins = Bins(tuple(float(edge) for edge in edges))
    rules = {} if bins is None else {"_bins": bins}
    return OwnRegression(
        name=name,
        title="",
        low=low,
        high=high,
        classes={f"acc{ending}": rule for ending, rule in rules.items()},
        signs={},
        f1={f"f1{ending}": rule for ending, rule in rules.items()},
        clipped=False,
        text_case="keep",
        bins=bins,
        names=tuple(names) if isinstance(names, (list, tuple)) else (),
    )


def _range(value: Any, problems: Problems) -> tuple[float, float]:
    good = isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_number, value)) and value[0] < value[1]
    problems.check(good, f"range={_shown(value)}: expected two numbers, the lowest and the highest label")
    return (float(value[0]), float(value[1])) if good else (0.0, 1.0)


def _classification(name: Any, values: Mapping[str, Any], problems: Problems) -> Task:
    shipped = TASKS.get(name) if isinstance(name, str) else None
    problems.check(not isinstance(shipped, RegressionTask), f"{name!r} is a shipped data set whose labels are numbers")
    several = values.get("kind") == MULTI
    classes = values.get("classes") or []
    if classes:
        _named(classes, "classes", problems)
    weights = values.get("class_weights", BALANCED)
    if isinstance(weights, (list, tuple)):
        positive = bool(classes) and len(weights) == len(classes) and all(_is_number(w) and w > 0 for w in weights)
        problems.check(positive, "class_weights: expected one number > 0 a class, 'balanced' or 'none'")
        weights = tuple(float(w) for w in weights) if positive else BALANCED
    else:
        known = isinstance(weights, str) and weights in (BALANCED, NO_WEIGHTS)
        problems.check(known, f"class_weights={_shown(weights)}: expected 'balanced', 'none' or a list")
    base = shipped if isinstance(shipped, ClassificationTask) else ClassificationTask(name, name)
    if shipped is not None:
        problems.check(
            base.several == several, f"{name!r} is a {base.kind} task, not {'a ' + MULTI if several else SINGLE}"
        )
    named = tuple(classes) if isinstance(classes, (list, tuple)) else ()
    return replace(base, classes=named, several=several, class_weights=weights)


def _named(names: Any, what: str, problems: Problems) -> bool:
    good = isinstance(names, (list, tuple)) and all(map(_is_word, names))
    problems.check(good, f"{what}={_shown(names)}: expected a list of texts of one line")
    if not good:
        return False
    few = FEWEST_CLASSES <= len(names) <= MOST_CLASSES
    problems.check(few, f"{what}: {len(names)} of them, expected {FEWEST_CLASSES} to {MOST_CLASSES}")
    twice = sorted({name for name in names if names.count(name) > 1})
    problems.check(not twice, f"{what}: {', '.join(twice)} stands there twice")
    return few and not twice


def _shown(value: Any) -> str:
    """``repr`` of what a file holds, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        text = f"a {type(value).__name__} of very many digits"
    return text if len(text) <= 100 else f"{text[:100]}.."


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable() and value == value.strip()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9


def described_ranges() -> str:
    """For help texts: which label range holds for which data sets."""
    ranges: dict[tuple[float, float], list[str]] = {}
    for name, task in REGRESSION.items():
        ranges.setdefault((task.low, task.high), []).append(name)
    numbers = ", ".join(f"{' and '.join(sets)} [{low:g}, {high:g}]" for (low, high), sets in ranges.items())
    classes = [name for name in TASKS if name not in REGRESSION]
    return f"{numbers}; classes: {', '.join(classes)}"
