"""Facts that travel with an adapter: what identifies its base, how its features were standardised. Read from files, so
every part of them is checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def is_number(value: Any) -> bool:
    """A finite number; JSON knows integers that no float can hold."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _text(value: Any) -> bool:
    return isinstance(value, str)


_FINGERPRINT: dict[str, Callable[[Any], bool]] = {
    "family": _text,
    "width": _count,
    "layers": _count,
    "vocabulary": _count,
    "weights": _text,
}
_MAY_LACK = "weights"  # of a base whose weights were shards when the adapter was made


def fingerprint_problems(value: Any) -> list[str]:
    """What is wrong with a ``base_fingerprint``, one phrase each."""
    if value is None:
        return []
    if not isinstance(value, dict):
        return [f"base_fingerprint={value!r}: expected a mapping"]
    if not _FINGERPRINT.keys() - {_MAY_LACK} <= value.keys() <= _FINGERPRINT.keys():
        return [f"base_fingerprint has {', '.join(map(str, value)) or 'nothing'}: expected {', '.join(_FINGERPRINT)}"]
    return [
        f"base_fingerprint.{key}={value[key]!r}: expected {'a string' if good is _text else 'an integer >= 1'}"
        for key, good in _FINGERPRINT.items()
        if key in value and not good(value[key])
    ]


def standardisation_problems(name: str, value: Any, dim: Any) -> list[str]:
    """What is wrong with modality ``name``'s ``standardisation``, one phrase each."""
    if value is None or not isinstance(dim, int):
        return []
    if not isinstance(value, dict) or not {"mean", "std"} <= value.keys() <= {"mean", "std", "clip", "constant"}:
        given = ", ".join(map(str, value)) if isinstance(value, dict) else repr(value)
        return [f"modalities.{name}.standardisation has {given}: expected mean, std, clip, constant"]
    problems = []
    for key in ("mean", "std"):
        numbers = value[key]
        if not isinstance(numbers, (list, tuple)) or len(numbers) != dim or not all(map(is_number, numbers)):
            problems.append(f"modalities.{name}.standardisation.{key}: expected {dim} numbers, one per dimension")
        elif key == "std" and min(numbers) <= 0:
            problems.append(f"modalities.{name}.standardisation.std holds {min(numbers)!r}: expected numbers > 0")
    clip, constant = value.get("clip"), value.get("constant", [])
    if clip is not None and not (is_number(clip) and clip > 0):
        problems.append(f"modalities.{name}.standardisation.clip={clip!r}: expected a number > 0, or null")
    if not isinstance(constant, (list, tuple)) or not all(
        isinstance(i, int) and not isinstance(i, bool) and 0 <= i < dim for i in constant
    ):
        problems.append(f"modalities.{name}.standardisation.constant={constant!r}: expected dimensions, 0 to {dim - 1}")
    return problems
