"""Cells that differ in their seed alone, taken together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

BACKBONE = ("base", "layers")
AXIS_NAMES = {
    "base": "base model",
    "layers": "LM layers",
    "blocks": "MM Blocks",
    "placement": "placement",
    "num_fusion_tokens": "fusion tokens",
    "ffw_scope": "FFW scope",
    "lora_r": "LM LoRA rank",
    "ffw_lora_r": "FFW LoRA rank",
    "data_fraction": "share of the training data",
}
NOTHING = "none"
"""Of ``modalities``: the text alone."""
OWN = "own"
"""Of a setting: what the base model brings."""


def axis_name(axis: str) -> str:
    """A setting as the report calls it."""
    return AXIS_NAMES.get(axis, axis.replace("_", " "))


def named(axis: str, value: Any) -> str:
    """A value with the setting's name where it needs one: ``"7 MM Blocks"``, ``"1 MM Block"``, ``"text alone"``."""
    if axis == "modalities":
        return "text alone" if plain(value) == NOTHING else str(plain(value))
    return str(value) if axis == "base" else counted(plain(value), axis_name(axis))


def counted(value: Any, name: str) -> str:
    """``"7 MM Blocks"``, ``"1 MM Block"``."""
    return f"{value} {name.removesuffix('s') if value == 1 else name}"


@dataclass
class Configuration:
    """One point of the grid.

    Args:
        values: setting -> value.
        records: seed -> ``cell.json`` of a finished cell.
    """

    values: dict[str, Any]
    records: dict[int, dict[str, Any]] = field(default_factory=dict)

    def by_seed(self, metric: str, split: str = "test") -> dict[int, float]:
        """The metric of each seed where it is defined."""
        found = {seed: record["metrics"][split].get(metric) for seed, record in self.records.items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def head(self, head: str, metric: str, split: str = "test") -> list[float]:
        """A head's own metric, one value a seed."""
        return list(self.head_by_seed(head, metric, split).values())

    def head_by_seed(self, head: str, metric: str, split: str = "test") -> dict[int, float]:
        """A head's own metric of each seed where it is defined."""
        found = {s: r["metrics"]["heads"][split].get(head, {}).get(metric) for s, r in self.records.items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def train(self, *path: str) -> list[float]:
        """A number of ``train_info``, one value a seed."""
        found = []
        for record in self.records.values():
            value: Any = record["train_info"]
            for name in path:
                value = (value or {}).get(name)
            if value is not None:
                found.append(float(value))
        return found

    def rest(self, axis: str, axes: Sequence[str]) -> str:
        """The values of all other axes."""
        return json.dumps({name: self.values.get(name) for name in axes if name != axis}, sort_keys=True)

    @property
    def backbone(self) -> tuple[Any, ...]:
        """Base model and how many of its layers there are."""
        return tuple(self.values.get(name) for name in BACKBONE)

    @property
    def lm_parameters(self) -> float:
        """Of the base model, as loaded."""
        total, trained = self.train("parameters", "total"), self.train("parameters", "trainable")
        return total[0] - trained[0] if total and trained else 0.0

    def label(self, axes: Sequence[str], between: str = ", ") -> str:
        """``"7 MM Blocks, text alone"``; settings that it has not are left out."""
        return between.join(named(name, self.values[name]) for name in axes if name in self.values)


def kinds_of_machine(records: Iterable[Mapping[str, Any]]) -> int:
    """How many kinds of machine finished cells ran on, told apart by what the CPU can, threads and GPUs: seconds of two
    kinds do not compare."""
    kinds = set()
    for record in records:
        if record["status"] == "finished":
            machine = dict(record["meta_info"]["environment"].get("machine", {}))
            kinds.add(json.dumps({k: v for k, v in machine.items() if k not in ("memory_gb", "cpus")}, sort_keys=True))
    return len(kinds)


def is_baseline(record: Mapping[str, Any]) -> bool:
    """Whether a cell fits a baseline: it trains no steps of the method, and has few of its settings."""
    return "baseline" in record["run_info"]["values"]


def gather(records: Iterable[Mapping[str, Any]], baselines: bool = False) -> list[Configuration]:
    """Finished cells by configuration, in the order in which they come: those of the method, or the baselines."""
    found: dict[str, Configuration] = {}
    for record in records:
        if record["status"] == "finished" and is_baseline(record) == baselines:
            run = record["run_info"]
            values = {name: plain(value) for name, value in run["values"].items()}
            key = json.dumps(values, sort_keys=True)
            found.setdefault(key, Configuration(values)).records[run["seed"]] = dict(record)
    return list(found.values())


def plain(value: Any) -> Any:
    """A value that can be compared and sorted: of a list its words."""
    return " + ".join(map(str, value)) if isinstance(value, list) else value


def varied(configurations: Sequence[Configuration]) -> list[str]:
    """Settings that have more than one value, those of the backbone first; ``fusion_layers`` only where number and
    placement of the MM Blocks do not say all, ``layers`` only where the base model does not."""
    names = list(dict.fromkeys(name for c in configurations for name in c.values))
    found = [name for name in names if _count(configurations, name) > 1]
    known = ("layers", "blocks", "placement")
    if "fusion_layers" in found and _count(configurations, *known) == _count(configurations, *known, "fusion_layers"):
        found.remove("fusion_layers")
    if "base" in found and "layers" in found and _count(configurations, "base") == _count(configurations, *BACKBONE):
        found.remove("layers")
    return [name for name in found if name not in together(configurations, found)]


def together(configurations: Sequence[Configuration], names: Sequence[str]) -> dict[str, str]:
    """Settings that are a base model's own, or not, wherever an earlier one is: the setting -> that one.

    Such a bundle (rank, scale and width, say) varies as one, and goes by the name of its first setting.
    """
    bundled: dict[str, str] = {}
    brought = [name for name in names if any(c.values.get(name) == OWN for c in configurations)]
    for place, name in enumerate(brought):
        for first in brought[:place]:
            both, alone = _count(configurations, first, name), (_count(configurations, n) for n in (first, name))
            if first not in bundled and all(count == both for count in alone):
                bundled.setdefault(name, first)
    return bundled


def _count(configurations: Sequence[Configuration], *names: str) -> int:
    return len({json.dumps([c.values.get(name) for name in names]) for c in configurations})
