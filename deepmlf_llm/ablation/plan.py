"""What an ablation runs: a YAML file of one recipe and of named variants, each a few settings that differ.

name: mosi
title: What the parts of DeepMLF do on CMU-MOSI
config: mosi_smollm2                # the recipe, as --config of train
data: data/mosi                     # or a list: the folds of a cross-validation
settings: {dtype: bfloat16}         # what all share, over the recipe
seeds: 0-4
reference: text and audio           # what the others are compared with
variants:                           # group -> variant -> what differs
  what is heard:
    text and audio: {}
    text alone: {modalities: none}
    other features: {data: data/mosi-by-video}   # the same utterances, prepared otherwise
  baselines:
    ridge: {baseline: ridge}        # settings of `deepmlf baseline`
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepmlf_llm.baselines.settings import BaselineSettings
from deepmlf_llm.errors import ConfigError, Problems, suggest
from deepmlf_llm.training.command_line import read_layers, read_shipped
from deepmlf_llm.training.seeds import parse_seeds
from deepmlf_llm.training.settings import RunSettings, flatten

BASELINE, DATA = "baseline", "data"
_KEYS = ("name", "title", "config", "data", "settings", "seeds", "reference", "variants")
_SAME_FOR_ALL_SEEDS = ("constant", "ridge")
_FROM_THE_RECIPE = (
    "data_fraction",
    "base_model",
    "revision",
    "num_layers",
    "quantization",
    "dtype",
    "max_tokens",
    "template",
)


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        name, group: what it is called, and under which heading it stands.
        changes: the settings that differ from the recipe, as given.
        settings: all of the recipe's settings with them, dotted; of a baseline its own.
        seeds: with which it runs.
        data: the data directories that it runs on, the plan's or its own of the same utterances.
    """

    name: str
    group: str
    changes: Mapping[str, Any]
    settings: Mapping[str, Any]
    seeds: Sequence[int]
    data: Sequence[str]

    @property
    def baseline(self) -> str | None:
        """Which baseline it is; None: a run of the recipe."""
        return self.changes.get(BASELINE)

    @property
    def slug(self) -> str:
        """Name of its folder."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-")

    @property
    def fingerprint(self) -> str:
        """Of its settings: results that are stored under another one are not its own."""
        return hashlib.sha256(json.dumps(dict(self.settings), sort_keys=True, default=str).encode()).hexdigest()[:16]

    def run_settings(self, data: str, output: Path) -> RunSettings:
        """Of its runs on one data directory."""
        return RunSettings.from_dict({**self.settings, "data": data, "output_dir": str(output)})

    def baseline_settings(self, data: str, output: Path, seed: int) -> BaselineSettings:
        """Of one of its fits on one data directory."""
        return BaselineSettings(**{**self.settings, "data": data, "output_dir": str(output), "seed": seed})


@dataclass(frozen=True)
class AblationPlan:
    """An ablation file.

    Attributes:
        name, title: of the ablation.
        data: the data directories: one, or the folds of a cross-validation, whose test splits are put together.
        reference: name of the variant that the others are compared with.
        variants: in the file's order.
    """

    name: str
    title: str
    data: Sequence[str]
    reference: str
    variants: Sequence[Variant]

    @classmethod
    def from_yaml(cls, given: str | Path) -> AblationPlan:
        """Reads a file, by its path or the name of a shipped one (``ablations/mosi``).

        Raises:
            ConfigError: not there, no YAML, or wrong; one message names everything that is.
        """
        return _read(read_shipped(given, str(given)), str(given))

    def named(self, names: Sequence[str]) -> list[Variant]:
        """The variants of these names, or of these groups; of no name all.

        Raises:
            ConfigError: a name that is neither.
        """
        known = [variant.name for variant in self.variants] + [variant.group for variant in self.variants]
        problems = Problems(ConfigError, "--only")
        for name in names:
            problems.check(name in known, f"no variant and no group {name!r}{suggest(name, known)}")
        problems.raise_if_any()
        return [v for v in self.variants if not names or v.name in names or v.group in names]


def _read(content: Any, source: str) -> AblationPlan:
    problems = Problems(ConfigError, source)
    if not isinstance(content, Mapping):
        raise ConfigError(f"{source}: expected a mapping with the keys {', '.join(_KEYS)}")
    for key in content:
        problems.check(key in _KEYS, f"unknown key {key!r}{suggest(str(key), _KEYS)}")
    for key in ("name", "config", "data", "seeds", "reference", "variants"):
        problems.check(bool(content.get(key)) or content.get(key) == 0, f"no {key}")
    problems.raise_if_any()
    data: list[str] = []
    try:
        data = _directories(content["data"])
    except ConfigError as error:
        problems.check(False, str(error))
    variants = _variants(content, data, problems)
    names = [variant.name for variant in variants]
    for name in {name for name in names if names.count(name) > 1}:
        problems.check(False, f"variants: {name!r} stands there twice")
    slugs = [variant.slug for variant in variants]
    for variant in variants:
        alone = bool(variant.slug) and (slugs.count(variant.slug) == 1 or names.count(variant.name) > 1)
        problems.check(alone, f"variants: {variant.name!r} makes the folder {variant.slug!r}, as another one, or none")
    reference = content["reference"]
    problems.check(reference in names, f"reference={reference!r}: no variant{suggest(str(reference), names)}")
    problems.raise_if_any()
    return AblationPlan(str(content["name"]), str(content.get("title") or content["name"]), data, reference, variants)


def _directories(given: Any) -> list[str]:
    data = [given] if isinstance(given, str) else given
    if not (isinstance(data, list) and all(isinstance(part, str) for part in data) and len(set(data)) == len(data)):
        raise ConfigError(f"data={given!r}: expected a data directory, or a list of different ones")
    return data


def _variants(content: Mapping[str, Any], data: list[str], problems: Problems) -> list[Variant]:
    """Every variant with its settings, each checked as a run or a baseline would check them."""
    try:
        seeds = parse_seeds(str(content["seeds"]))
        common = {**read_layers(str(content["config"])), **flatten(content.get("settings") or {})}
    except ConfigError as error:
        problems.check(False, str(error))
        return []
    groups = content["variants"]
    if not isinstance(groups, Mapping) or not all(isinstance(group, Mapping) for group in groups.values()):
        problems.check(False, "variants: expected group -> variant -> settings that differ")
        return []
    found = []
    for group, members in groups.items():
        for name, given in members.items():
            if not isinstance(given or {}, Mapping):
                problems.check(False, f"variants: {name}: {given!r}: expected a mapping of settings")
                continue
            try:
                found.append(_variant(str(name), str(group), dict(given or {}), common, seeds, data))
            except (ConfigError, TypeError) as error:
                problems.check(False, f"variants: {name}: {str(error).removeprefix('settings: ')}")
    return found


def _variant(
    name: str, group: str, changes: dict[str, Any], common: Mapping[str, Any], seeds: list[int], data: list[str]
) -> Variant:
    if DATA in changes:
        parts, data = len(data), _directories(changes[DATA])
        if parts and len(data) != parts:
            raise ConfigError(f"data: {len(data)} directories, expected as many as the ablation has, {parts}")
    if BASELINE not in changes:
        settings = {**common, **flatten(changes)}
        variant = Variant(name, group, changes, settings, seeds, data)
        variant.run_settings("data", Path("runs"))
        return variant
    kind = changes[BASELINE]
    shared = {key.removeprefix("text."): value for key, value in common.items()}
    kept = {key: shared[key] for key in _FROM_THE_RECIPE if key in shared}
    settings = {**kept, **{key: value for key, value in changes.items() if key != BASELINE}, "kind": kind}
    own_seeds = seeds[:1] if kind in _SAME_FOR_ALL_SEEDS else seeds
    variant = Variant(name, group, changes, settings, own_seeds, data)
    variant.baseline_settings("data", Path("runs"), seeds[0])
    return variant
