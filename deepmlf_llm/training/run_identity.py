"""In what a run differs from another one: its settings, its data, its processes, its engine; each by name and value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepmlf_llm.training.identity_keys import FIRST_RUNS, VOLATILE
from deepmlf_llm.training.keys import all_keys
from deepmlf_llm.training.settings import RunSettings, flatten

SHOWN = 6
_BESIDES = {"output_dir", "deepspeed", *VOLATILE}  # the engine counts by its content, not by the name of its file
OF_THE_WORLD = {
    "batch_size",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "text_cache",
    "deepspeed",
    "processes",
}
"""Keys and facts that say how a run is computed and not what: it may go on with others, as long as a step has the
utterances that it had."""


@dataclass(frozen=True)
class Difference:
    """One thing in which two runs differ.

    Args:
        name: of the key or fact.
        words: both values.
    """

    name: str
    words: str

    @property
    def is_of_the_world(self) -> bool:
        """Whether a run may go on with the other value."""
        return self.name in OF_THE_WORLD


def identity(settings: RunSettings, processes: int, base_model: str, data: str) -> str:
    """The same for a run on any number of processes and by any engine: sha256 of what is computed, without how.

    Args:
        settings: of the run.
        processes, base_model, data: as for :meth:`RunSettings.fingerprint`.
    """
    kept = {name: value for name, value in settings.decided().items() if name not in OF_THE_WORLD}
    kept |= {"base_model": base_model, "data": data, "step": settings.step_size(processes)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def differences(
    stored: Mapping[str, Any], given: Mapping[str, Any], stored_facts: Mapping[str, Any], facts: Mapping[str, Any]
) -> list[Difference]:
    """What differs, the data first, then settings.

    Args:
        stored, given: settings, nested; one that is missing is what it was before there was a key for it.
        stored_facts, facts: what the settings met: ``data``, ``processes``, ``base_model``, ``deepspeed``,
            ``init_from``, ``av_encoder_from``, ``step``; one that is None is not compared.
    """
    before, now = flatten(stored), flatten(given)
    of_settings = [
        Difference(name, f"{name}={old!r} there, {new!r} here")
        for name in sorted({*before, *now} - _BESIDES)
        for old, new in [(before.get(name, _at_rest(name)), now.get(name, _at_rest(name)))]
        if old != new
    ]
    of_facts = {"data": _of_data, "processes": _of_processes, "deepspeed": _of_engine, "step": _of_step}
    found: list[Difference] = []
    for name in ("data", "processes", "base_model", "deepspeed", "init_from", "av_encoder_from", "step"):
        old, new = stored_facts.get(name), facts.get(name)
        if old != new and (name == "deepspeed" or None not in (old, new)):
            found += [Difference(name, words) for words in of_facts.get(name, _plain(name))(old, new)]
    first = [difference for difference in found if difference.name == "data"]
    return first + of_settings + [difference for difference in found if difference.name != "data"]


def _at_rest(name: str) -> Any:
    """What a run computed whose files do not name this key: it is of an earlier version, or the value is null."""
    key = all_keys().get(name)
    return FIRST_RUNS.get(name, key.default if key else None)


def in_words(found: list[Difference]) -> str:
    """The first few, and how many more."""
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(difference.words for difference in found[:SHOWN]) + more


def _of_data(old: Any, new: Any) -> list[str]:
    parts = [str(value).split("-") for value in (old, new)]
    if len(parts[0]) == len(parts[1]) == 3:
        names = [name for name, a, b in zip(("train", "valid", "test"), *parts, strict=True) if a != b]
        return [f"the data: another {', '.join(names)} split (by its sha256)"]
    return [f"the data: {old!r} there, {new!r} here"]


def _of_step(old: Any, new: Any) -> list[str]:
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return [f"the steps: {old!r} there, {new!r} here"]
    told = {"utterances": "utterances a step, at most", "per_epoch": "steps an epoch"}
    return [f"{words}: {old.get(k)} there, {new.get(k)} here" for k, words in told.items() if old.get(k) != new.get(k)]


def _of_processes(old: Any, new: Any) -> list[str]:
    return [f"the number of processes: {old} there, {new} here"]


def _of_engine(old: Any, new: Any) -> list[str]:
    told = [_engine(config) for config in (old, new)]
    other = f"{told[0]} there, {told[1]} here" if told[0] != told[1] else "other settings of it"
    return [f"the engine: {other}"]


def _engine(config: Any) -> str:
    """A DeepSpeed configuration in a few words."""
    if not isinstance(config, Mapping):
        return "no DeepSpeed"
    zero = config.get("zero_optimization") or {}
    parts = {"offload_optimizer": "optimizer", "offload_param": "weights"}
    devices = {part: (zero.get(name) or {}).get("device", "none") for name, part in parts.items()}
    away = [f"{part} on {device}" for part, device in devices.items() if device != "none"]
    return " and ".join([f"ZeRO {zero.get('stage', 0)}", *away])


def _plain(name: str) -> Any:
    return lambda old, new: [f"{name}: {old!r} there, {new!r} here"]
