"""Cells that differ in their seed alone, taken together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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


def axis_name(axis: str) -> str:
    """A setting as the report calls it."""
    return AXIS_NAMES.get(axis, axis.replace("_", " "))


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
        found = (record["metrics"]["heads"][split].get(head, {}).get(metric) for record in self.records.values())
        return [value for value in found if value is not None]

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

    def label(self, axes: Sequence[str]) -> str:
        return ", ".join(f"{self.values.get(name)} {axis_name(name)}" for name in axes)


def gather(records: Iterable[Mapping[str, Any]]) -> list[Configuration]:
    """Finished cells by configuration, in the order in which they come."""
    found: dict[str, Configuration] = {}
    for record in records:
        if record["status"] == "finished":
            run = record["run_info"]
            key = json.dumps(run["values"], sort_keys=True)
            found.setdefault(key, Configuration(dict(run["values"]))).records[run["seed"]] = dict(record)
    return list(found.values())


def varied(configurations: Sequence[Configuration]) -> list[str]:
    """Settings that have more than one value, those of the backbone first; ``fusion_layers`` only where number and
    placement of the MM Blocks do not say all."""
    names = list(dict.fromkeys(name for c in configurations for name in c.values))
    found = [name for name in names if _count(configurations, name) > 1]
    known = ("layers", "blocks", "placement")
    if "fusion_layers" in found and _count(configurations, *known) == _count(configurations, *known, "fusion_layers"):
        found.remove("fusion_layers")
    return found


def _count(configurations: Sequence[Configuration], *names: str) -> int:
    return len({json.dumps([c.values.get(name) for name in names]) for c in configurations})
