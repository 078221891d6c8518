"""What sets cells of two studies apart: settings that differ between the studies, and those that vary inside one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepmlf_llm.study.configurations import BACKBONE, OWN
from deepmlf_llm.training.keys import all_keys

_NOT_COMPARED = ("seed", "data")  # seeds pair the cells; data are compared by content, wherever they lie


@dataclass
class Cell:
    """A finished cell.

    Args:
        record: its ``cell.json``.
    """

    record: Mapping[str, Any]

    def __post_init__(self) -> None:
        """As given, and what the plan found out about the base: a stand-in is another base."""
        run = self.record["run_info"]
        self.values: dict[str, Any] = run["values"]  # what the rows of the grid name
        facts = {name: self.values[name] for name in BACKBONE if name in self.values}
        given = {name: value for name, value in run["settings"].items() if name not in ("base_model", *_NOT_COMPARED)}
        self.settings = {**facts, **self.values, **given, "processes": run["processes"]}

    def value(self, name: str) -> Any:
        """A setting that a study leaves out has its default."""
        if name in self.settings or name not in all_keys():
            return self.settings.get(name)
        return all_keys()[name].default

    def text(self, name: str) -> str:
        return as_text(self.value(name))


def differences(
    a: Sequence[Cell], b: Sequence[Cell], matched: Sequence[str] = ()
) -> tuple[list[tuple[str, str, str]], list[str]]:
    """What sets the studies apart, and the settings that vary inside one of them.

    Args:
        a, b: cells of one kind of each study.
        matched: settings that are matched, even where each study has one value.
    """
    names = list(dict.fromkeys(name for cell in (*a, *b) for name in cell.settings))
    differs, axes = [], []
    for name in names:
        mine, theirs = ({cell.text(name) for cell in cells} for cells in (a, b))
        if len(mine) == len(theirs) == 1 and name not in matched:
            if mine != theirs:
                differs.append((name, mine.pop(), theirs.pop()))
        elif (brought := _brought(a, b, name)) is not None:
            one, two = brought
            if any(one[base] != two[base] for base in one.keys() & two.keys()):
                differs.append((name, _at_each(one), _at_each(two)))
        elif len(mine | theirs) > 1:
            axes.append(name)
    return differs, axes


def _brought(a: Sequence[Cell], b: Sequence[Cell], name: str) -> tuple[dict[Any, str], dict[Any, str]] | None:
    """Base model -> value in each study, of a setting that comes with the base model; None where a row names it, or one
    base model has several values."""
    found: tuple[dict[Any, str], dict[Any, str]] = {}, {}
    if name in BACKBONE:
        return None
    for cells, values in zip((a, b), found, strict=True):
        for cell in cells:
            base = tuple(cell.values.get(part) for part in BACKBONE)
            text = cell.text(name)
            if cell.values.get(name, OWN) != OWN or values.setdefault(base, text) != text:
                return None
    return found


def _at_each(values: Mapping[Any, str]) -> str:
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    names = {base: str(base[0]) for base in values}
    if len(set(names.values())) < len(names):
        names = {(base, layers): f"{base} ({layers} layers)" for base, layers in values}
    return "; ".join(f"{names[base]}: {text}" for base, text in values.items())


def as_text(value: Any) -> str:
    """The same text for the same value."""
    return json.dumps(value, sort_keys=True, default=str)
