"""What a setting may be: a rule stands in each field's metadata, beside its help, and one loop checks them all."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

HELP, RULE = "help", "rule"
_SHOWN = 100  # characters of a value in a message


@dataclass(frozen=True)
class Rule:
    """Which values are good, and in words what is expected."""

    good: Callable[[Any], bool]
    expected: str
    choices: tuple[Any, ...] = ()


def setting(
    text: str, rule: Rule | None, default: Any = dataclasses.MISSING, factory: Any = dataclasses.MISSING
) -> Any:
    """A dataclass field with its help text and its rule; None: what it may be is checked elsewhere."""
    metadata = {HELP: text, RULE: rule}
    if factory is not dataclasses.MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def rule_problems(settings: Any, prefix: str = "") -> Iterator[str]:
    """What is wrong with the fields of a dataclass, one phrase each.

    Args:
        settings: an instance; nested settings are not entered.
        prefix: before a field's name in the message, e.g. ``"objective."``.
    """
    for entry in dataclasses.fields(settings):
        rule = entry.metadata.get(RULE)
        if rule is not None:
            yield from problem(f"{prefix}{entry.name}", getattr(settings, entry.name), rule)


def problem(name: str, value: Any, rule: Rule) -> list[str]:
    """What is wrong with one value: a phrase, or nothing."""
    return [] if rule.good(value) else [f"{name}={brief(value)}: expected {rule.expected}"]


def brief(value: Any) -> str:
    """``repr`` of what a user gave, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        text = f"an integer of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}.."


def is_number(value: Any) -> bool:
    """A finite number; JSON knows integers that no float can hold."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def is_integer(value: Any) -> bool:
    """An integer, and not a truth value, which Python counts among them."""
    return isinstance(value, int) and not isinstance(value, bool)


def integer(low: int, high: int) -> Rule:
    """An integer in ``low .. high``; the upper bound is there against typing errors, which would ask for terabytes."""
    return Rule(lambda value: is_integer(value) and low <= value <= high, f"an integer >= {low} (at most {high})")


def number(low: float, high: float, above: bool = False) -> Rule:
    """A number in ``[low, high]``, or ``(low, high]`` where it must lie ``above``."""
    return Rule(
        lambda value: is_number(value) and (low < value if above else low <= value) and value <= high,
        f"a number {'>' if above else '>='} {low:g} (at most {high:g})",
    )


def share(closed: bool = False) -> Rule:
    """A number in ``[0, 1)``, e.g. a dropout: dropping all leaves nothing to learn from; ``closed``: in ``[0, 1]``."""
    return Rule(
        lambda value: is_number(value) and (0 <= value < 1 or (closed and value == 1)),
        f"a number in [0, 1{']' if closed else ')'}",
    )


def choice(*choices: Any) -> Rule:
    """One of a few values; of the same type too, since Python takes 1 for True."""
    return Rule(
        lambda value: any(type(value) is type(option) and value == option for option in choices),
        f"one of {', '.join(map(repr, choices))}",
        choices,
    )


def word(what: str = "a word") -> Rule:
    """A text that is not empty and of one line."""
    return Rule(lambda value: isinstance(value, str) and bool(value.strip()) and value.isprintable(), what)


def words(what: str) -> Rule:
    """A list of texts that are not empty."""
    one = word()
    return Rule(lambda value: isinstance(value, (list, tuple)) and all(map(one.good, value)), what)


def flag() -> Rule:
    """True or false."""
    return Rule(lambda value: isinstance(value, bool), "true or false")


def mapping(what: str = "a mapping") -> Rule:
    """A mapping whose keys are texts."""
    return Rule(lambda value: isinstance(value, dict) and all(isinstance(key, str) for key in value), what)


def optional(rule: Rule) -> Rule:
    """As ``rule``, or None."""
    return Rule(lambda value: value is None or rule.good(value), f"{rule.expected}, or null", rule.choices)
