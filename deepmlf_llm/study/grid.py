"""The grid of a study: a YAML file of rows, each row every combination of its values; strict, all mistakes at once."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepmlf_llm.baselines.settings import KINDS as BASELINES
from deepmlf_llm.config.placement import parse_fusion_layers
from deepmlf_llm.errors import ConfigError, Problems, suggest
from deepmlf_llm.reading import read_yaml
from deepmlf_llm.tasks.metrics import METRIC_DEFINITIONS
from deepmlf_llm.training.keys import all_keys, refuse
from deepmlf_llm.training.settings import flatten

CELLS_LIMIT = 10_000  # at a minute each they take a week
_BACKBONE_KEYS = ("base_model", "num_layers", "revision", "settings", "otherwise")
BASELINE = "baseline"
SAME_FOR_ALL_SEEDS = ("constant", "ridge")
_NOT_HERE = {
    "seed": "list the seeds under seeds",
    "base_model": "name it under backbone, in the rows of grid",
    "num_layers": "name it under backbone, in the rows of grid",
    "revision": "name it under backbone, in the rows of grid",
    "output_dir": "every cell has its own; --output names the study's",
}


@dataclass(frozen=True)
class Backbone:
    """A base model, cut to its first layers where ``num_layers`` says so, and what stands in where it is not there.

    ``own``: settings of the recipe that belong to this base model (its question, its learning rate), dotted. They come
    before those that are fixed for all cells, and behind those of a row.
    """

    base_model: str
    num_layers: int | None = None
    revision: str | None = None
    otherwise: Backbone | None = None
    own: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def settings(self) -> dict[str, Any]:
        """As keys of the training recipe."""
        named = {"base_model": self.base_model, "num_layers": self.num_layers, "revision": self.revision}
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True)
class Exclusion:
    """Combinations that are left out on purpose.

    Args:
        name: why, in a few words; the report says it.
        where: setting -> values; a cell is left out if it has one of the values of every setting.
    """

    name: str
    where: Mapping[str, list[Any]]

    def covers(self, settings: Mapping[str, Any]) -> bool:
        return all(settings.get(name, all_keys()[name].default) in values for name, values in self.where.items())


@dataclass
class Grid:
    """What a study runs.

    Args:
        name: of the study; its output folder belongs to it.
        title: of the report.
        fixed: settings of the training recipe that all cells share, dotted.
        rows: each maps ``backbone`` and any further settings of the recipe to the values to cross; or ``backbone`` and
            ``baseline`` to what has to be beaten.
        seeds: every combination runs with each.
        exclude: combinations left out.
        processes: of each cell; with more than one, under the deepspeed launcher.
        metric: the plotted one.
    """

    name: str
    rows: list[dict[str, list[Any]]]
    seeds: list[int]
    title: str = ""
    fixed: dict[str, Any] = field(default_factory=dict)
    exclude: list[Exclusion] = field(default_factory=list)
    processes: int = 1
    metric: str = "mae"

    @classmethod
    def from_yaml(cls, path: str | Path) -> Grid:
        """Reads a grid file.

        Raises:
            ConfigError: not there, no YAML, or wrong; one message names everything that is.
        """
        try:
            content = read_yaml(path)
        except OSError as error:
            raise ConfigError(f"--grid {path}: cannot be read ({error.strerror})") from None
        except ValueError as error:
            raise ConfigError(f"--grid {path}: is not YAML ({' '.join(str(error).split())})") from None
        return cls.from_dict(content, f"--grid {path}")

    @classmethod
    def from_dict(cls, content: Any, source: str = "grid") -> Grid:
        """A grid from its file's content.

        Raises:
            ConfigError: as for :meth:`from_yaml`.
        """
        return _Reader(source).grid(content)

    def size(self) -> int:
        """How many cells it crosses, those that are left out included."""
        return sum(math.prod(map(len, row.values())) for row in self.rows) * len(self.seeds)

    def combinations(self) -> Iterator[tuple[Backbone, dict[str, Any], int]]:
        """Backbone, the row's other settings, seed: in the order of the file, each once."""
        seen = set()
        for row in self.rows:
            names = list(row)
            for values in itertools.product(*row.values()):
                chosen = dict(zip(names, values, strict=True))
                backbone = chosen.pop("backbone")
                for seed in self.seeds if _draws(chosen) else self.seeds[:1]:
                    identity = (backbone, repr(sorted(chosen.items())), seed)
                    if identity not in seen:
                        seen.add(identity)
                        yield backbone, chosen, seed


def _draws(chosen: Mapping[str, Any]) -> bool:
    """Whether seeds differ: those of a baseline that draws nothing do not."""
    return chosen.get(BASELINE) not in SAME_FOR_ALL_SEEDS


class _Reader:
    """Reads a grid, and collects what is wrong with it."""

    def __init__(self, source: str) -> None:
        self.problems = Problems(ConfigError, source)

    def grid(self, content: Any) -> Grid:
        if not isinstance(content, Mapping):
            self.problems.check(False, "expected a mapping with the keys name, grid, seeds")
            self.problems.raise_if_any()
        known = ("name", "title", "fixed", "grid", "seeds", "exclude", "processes", "metric")
        for key in content:
            self.problems.check(key in known, f"unknown key {key!r}{suggest(str(key), known)}")
        name, processes, metric = content.get("name"), content.get("processes", 1), content.get("metric", "mae")
        named = isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)
        self.problems.check(bool(named), f"name={name!r}: expected a word of letters, digits, '.', '_' and '-'")
        self.problems.check(_is_count(processes), f"processes={processes!r}: expected an integer >= 1")
        self.problems.check(
            metric in METRIC_DEFINITIONS, f"metric={metric!r}: expected one of {', '.join(METRIC_DEFINITIONS)}"
        )
        fixed = self.fixed(content.get("fixed") or {})
        rows = self.rows(content.get("grid"), fixed)
        if _is_count(processes) and processes > 1:
            self.problems.check(
                bool(fixed.get("deepspeed")), f"processes={processes} needs fixed: {{deepspeed: zero2}}"
            )
        grid = Grid(
            name=str(name),
            title=str(content.get("title") or name),
            fixed=fixed,
            rows=rows,
            seeds=self.seeds(content.get("seeds", [0])),
            exclude=self.exclusions(content.get("exclude") or []),
            processes=processes,
            metric=metric,
        )
        cells = grid.size()
        self.problems.check(cells <= CELLS_LIMIT, f"{cells:,} cells; a study has at most {CELLS_LIMIT:,}: cross less")
        self.problems.raise_if_any()
        return grid

    def fixed(self, content: Any) -> dict[str, Any]:
        if not isinstance(content, Mapping):
            self.problems.check(False, f"fixed={content!r}: expected a mapping of settings")
            return {}
        return {n: self.value(n, v, "fixed") for n, v in flatten(content).items() if self.setting(n, "fixed")}

    def rows(self, content: Any, fixed: Mapping[str, Any]) -> list[dict[str, list[Any]]]:
        rows = [content] if isinstance(content, Mapping) else content
        if not isinstance(rows, list) or not rows:
            self.problems.check(False, "grid: empty: expected a list of rows, each with backbone and settings to cross")
            return []
        return [self.row(row, f"grid row {number}", fixed) for number, row in enumerate(rows, 1)]

    def row(self, content: Any, where: str, fixed: Mapping[str, Any]) -> dict[str, list[Any]]:
        if not isinstance(content, Mapping) or "backbone" not in content:
            self.problems.check(False, f"{where}: expected a mapping with the key backbone")
            return {}
        row: dict[str, list[Any]] = {}
        for name, values in flatten(content).items():
            values = values if isinstance(values, list) else [values]
            self.problems.check(bool(values), f"{where}: {name} has no value")
            if name == "backbone":
                row[name] = [backbone for v in values if (backbone := self.backbone(v, where)) is not None]
            elif name == BASELINE:
                row[name] = self.baselines(values, content, where)
            elif self.setting(name, where):
                self.problems.check(name not in fixed, f"{where}: {name} stands under fixed too")
                row[name] = [self.value(name, value, where) for value in values]
        return row

    def baselines(self, values: list[Any], content: Mapping[str, Any], where: str) -> list[str]:
        for value in values:
            known = isinstance(value, str) and value in BASELINES
            self.problems.check(known, f"{where}: baseline={value!r}: expected one of {', '.join(BASELINES)}")
        others = [name for name in flatten(content) if name not in ("backbone", BASELINE)]
        self.problems.check(not others, f"{where}: {', '.join(others)} beside baseline, which takes backbone alone")
        return [str(value) for value in values]

    def backbone(self, content: Any, where: str) -> Backbone | None:
        content = {"base_model": content} if isinstance(content, str) else content
        if not isinstance(content, Mapping) or not isinstance(content.get("base_model"), str):
            self.problems.check(False, f"{where}: backbone={content!r}: expected a name, or a mapping with base_model")
            return None
        for key in content:
            near = suggest(str(key), _BACKBONE_KEYS)
            self.problems.check(key in _BACKBONE_KEYS, f"{where}: backbone: unknown key {key!r}{near}")
        layers = content.get("num_layers")
        self.problems.check(
            layers is None or _is_count(layers), f"{where}: num_layers={layers!r}: expected an integer >= 1"
        )
        other = content.get("otherwise")
        stand_in = None if other is None else self.backbone(other, f"{where}: otherwise")
        own = self.own(content.get("settings") or {}, f"{where}: backbone: settings")
        return Backbone(content["base_model"], layers, content.get("revision"), stand_in, own)

    def own(self, content: Any, where: str) -> dict[str, Any]:
        if not isinstance(content, Mapping):
            self.problems.check(False, f"{where}={content!r}: expected a mapping of settings")
            return {}
        return {n: self.value(n, v, where) for n, v in flatten(content).items() if self.setting(n, where)}

    def setting(self, name: str, where: str) -> bool:
        if name in _NOT_HERE:
            self.problems.check(False, f"{where}: {name} cannot stand here: {_NOT_HERE[name]}")
            return False
        self.problems.check(name in all_keys(), f"{where}: {refuse(name)}")
        return name in all_keys()

    def value(self, name: str, value: Any, where: str) -> Any:
        try:
            if name == "fusion_layers":
                return parse_fusion_layers(value)
            return all_keys()[name].coerce(value)
        except ConfigError as error:
            self.problems.check(False, f"{where}: {error}")
            return value

    def seeds(self, content: Any) -> list[int]:
        seeds = content if isinstance(content, list) else [content]
        good = bool(seeds) and all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in seeds)
        self.problems.check(good, f"seeds={content!r}: expected a list of integers >= 0")
        self.problems.check(not good or len(set(seeds)) == len(seeds), f"seeds={content!r}: a seed stands there twice")
        return list(seeds)

    def exclusions(self, content: Any) -> list[Exclusion]:
        if not isinstance(content, list):
            self.problems.check(False, f"exclude={content!r}: expected a list of {{name, where}}")
            return []
        exclusions = []
        for number, entry in enumerate(content, 1):
            where = f"exclude {number}"
            if (
                not isinstance(entry, Mapping)
                or set(entry) != {"name", "where"}
                or not isinstance(entry["where"], Mapping)
            ):
                self.problems.check(False, f"{where}: expected the keys name (why) and where (setting: values)")
                continue
            chosen = {}
            for name, values in flatten(entry["where"]).items():
                self.problems.check(name in all_keys(), f"{where}: {refuse(name)}")
                if name in all_keys():
                    listed = values if isinstance(values, list) else [values]
                    chosen[name] = [self.value(name, value, where) for value in listed]
            exclusions.append(Exclusion(str(entry["name"]), chosen))
        return exclusions


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
