"""Facts that travel with an adapter: what identifies its base, how its features were standardised. Read from files, so
every part of them is checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deepmlf_llm.config.rules import brief, is_integer, is_number


def _count(value: Any) -> bool:
    return is_integer(value) and value >= 1


def _text(value: Any) -> bool:
    return isinstance(value, str)


_FINGERPRINT: dict[str, Callable[[Any], bool]] = {
    "family": _text,
    "width": _count,
    "layers": _count,
    "vocabulary": _count,
    "weights": _text,
    # Since version 2, which tells every tensor apart:
    "version": _count,
    "shapes": _text,
    "digest": _text,
    "sketch": _text,
    "stored": _text,
    "quantization": _text,
}
_VERSION = 2
_ALWAYS = {"family", "width", "layers", "vocabulary"}  # the rest may lack: weights can be shards, or of version 1


def fingerprint_problems(value: Any) -> list[str]:
    """What is wrong with a ``base_fingerprint``, one phrase each."""
    if value is None:
        return []
    if not isinstance(value, dict):
        return [f"base_fingerprint={brief(value)}: expected a mapping"]
    if not _ALWAYS <= value.keys() <= _FINGERPRINT.keys():
        given = brief(", ".join(map(str, value)) or "nothing")
        return [f"base_fingerprint has {given}: expected {', '.join(_FINGERPRINT)}"]
    version = value.get("version", 1)
    if is_integer(version) and version > _VERSION:
        return [f"base_fingerprint.version={brief(version)}: this package reads up to {_VERSION}; upgrade deepmlf_llm"]
    return [
        f"base_fingerprint.{key}={brief(value[key])}: expected {'a string' if good is _text else 'an integer >= 1'}"
        for key, good in _FINGERPRINT.items()
        if key in value and not good(value[key])
    ]


def standardisation_problems(name: str, value: Any, dim: Any) -> list[str]:
    """What is wrong with modality ``name``'s ``standardisation``, one phrase each."""
    if value is None or not is_integer(dim):
        return []
    if not isinstance(value, dict) or not {"mean", "std"} <= value.keys() <= {"mean", "std", "clip", "constant"}:
        given = ", ".join(map(str, value)) if isinstance(value, dict) else brief(value)
        return [f"modalities.{name}.standardisation has {given}: expected mean, std, clip, constant"]
    problems = []
    for key in ("mean", "std"):
        numbers = value[key]
        if not isinstance(numbers, (list, tuple)) or len(numbers) != dim or not all(map(is_number, numbers)):
            problems.append(f"modalities.{name}.standardisation.{key}: expected {dim} numbers, one per dimension")
        elif key == "std" and min(numbers) <= 0:
            problems.append(f"modalities.{name}.standardisation.std holds {brief(min(numbers))}: expected numbers > 0")
    clip, constant = value.get("clip"), value.get("constant", [])
    if clip is not None and not (is_number(clip) and clip > 0):
        problems.append(f"modalities.{name}.standardisation.clip={brief(clip)}: expected a number > 0, or null")
    if not isinstance(constant, (list, tuple)) or not all(is_integer(i) and 0 <= i < dim for i in constant):
        problems.append(
            f"modalities.{name}.standardisation.constant={brief(constant)}: expected dimensions, 0 to {dim - 1}"
        )
    return problems
