"""In what a run differs from another one: its settings, its data, its processes, its engine; each by name and value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepmlf_llm.training.identity_keys import FIRST_RUNS, VOLATILE
from deepmlf_llm.training.keys import all_keys
from deepmlf_llm.training.settings import flatten

SHOWN = 6
_BESIDES = {"output_dir", "deepspeed", *VOLATILE}  # the engine counts by its content, not by the name of its file


def differences(
    stored: Mapping[str, Any], given: Mapping[str, Any], stored_facts: Mapping[str, Any], facts: Mapping[str, Any]
) -> list[str]:
    """One phrase each, settings first.

    Args:
        stored, given: settings, nested; one that is missing is what it was before there was a key for it.
        stored_facts, facts: what the settings met: ``data``, ``processes``, ``base_model``, ``deepspeed``,
            ``init_from``, ``av_encoder_from``; one that is None is not compared.
    """
    before, now = flatten(stored), flatten(given)
    found = [
        f"{name}={old!r} there, {new!r} here"
        for name in sorted({*before, *now} - _BESIDES)
        for old, new in [(before.get(name, _at_rest(name)), now.get(name, _at_rest(name)))]
        if old != new
    ]
    of_facts = {"data": _of_data, "processes": _of_processes, "deepspeed": _of_engine}
    for name in ("data", "processes", "base_model", "deepspeed", "init_from", "av_encoder_from"):
        old, new = stored_facts.get(name), facts.get(name)
        if old != new and (name == "deepspeed" or None not in (old, new)):
            found += of_facts.get(name, _plain(name))(old, new)
    return found


def _at_rest(name: str) -> Any:
    """What a run computed whose files do not name this key: it is of an earlier version, or the value is null."""
    key = all_keys().get(name)
    return FIRST_RUNS.get(name, key.default if key else None)


def in_words(found: list[str]) -> str:
    """The first few, and how many more."""
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(found[:SHOWN]) + more


def _of_data(old: Any, new: Any) -> list[str]:
    parts = [str(value).split("-") for value in (old, new)]
    if len(parts[0]) == len(parts[1]) == 3:
        names = [name for name, a, b in zip(("train", "valid", "test"), *parts, strict=True) if a != b]
        return [f"the data: another {', '.join(names)} split (by its sha256)"]
    return [f"the data: {old!r} there, {new!r} here"]


def _of_processes(old: Any, new: Any) -> list[str]:
    return [f"the number of processes: {old} there, {new} here"]


def _of_engine(old: Any, new: Any) -> list[str]:
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return [f"DeepSpeed: {'used' if old else 'not used'} there, {'used' if new else 'not used'} here"]
    before, now = _dotted(old), _dotted(new)
    return [
        f"DeepSpeed's {name}={before.get(name)!r} there, {now.get(name)!r} here"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def _dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _plain(name: str) -> Any:
    return lambda old, new: [f"{name}: {old!r} there, {new!r} here"]
