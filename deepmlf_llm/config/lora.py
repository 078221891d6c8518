"""Which of PEFT's LoRA settings DeepMLF serves, and what they may be.

PEFT's ``LoraConfig`` holds many variants of LoRA. Some change the frozen base at the start (PiSSA, OLoRA, CorDA), train
parts of it (``modules_to_save``, ``bias``) or import a module by a name from the config (``megatron_core``). Those are
refused: the base stays as it is, and an adapter's file runs nothing.

Modules are chosen by their names, letter by letter. PEFT takes a string for a regular expression, and one of twenty
characters can keep it busy for years; what an expression says, a list of names says as well.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from peft import LoraConfig
from peft.tuners.lora import LoraRuntimeConfig

from deepmlf_llm.config.rules import brief, is_integer, is_number

_MOST = 1 << 20  # of a rank, a scale, a layer's number: beyond, it is a typing error


_LITERAL = re.compile(r"[A-Za-z0-9_.-]{1,200}")
_MOST_NAMES = 4096


def _literal(value: Any) -> bool:
    """A name, or a part of one: what matches itself only, where PEFT reads it as a regular expression."""
    return isinstance(value, str) and _LITERAL.fullmatch(value) is not None


def _words(value: Any) -> bool:
    return isinstance(value, (list, set, tuple)) and len(value) <= _MOST_NAMES and all(map(_literal, value))


def _layers(value: Any) -> bool:
    numbers = value if isinstance(value, (list, tuple)) else [value]
    return all(is_integer(number) and 0 <= number <= _MOST for number in numbers)


def _by_name(good: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and _words(list(value)) and all(map(good, value.values()))


def _or_none(good: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or good(value)


def _rank(value: Any) -> bool:
    return is_integer(value) and 1 <= value <= _MOST


_TRUTH: tuple[Callable[[Any], bool], str] = (lambda value: isinstance(value, bool), "true or false")
_MODULES = "a list of module names (letters, digits, '_', '.', '-'; no regular expressions)"
_NAME: tuple[Callable[[Any], bool], str] = (_or_none(lambda value: isinstance(value, str)), "a string")
SERVED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "target_modules": (_or_none(lambda v: _words(v) or _literal(v)), f"{_MODULES}, or 'all-linear'"),
    "exclude_modules": (_or_none(lambda v: _words(v) or _literal(v)), _MODULES),
    "lora_alpha": (lambda v: is_number(v) and 0 < v <= _MOST, "a number > 0"),
    "lora_dropout": (lambda v: is_number(v) and 0 <= v < 1, "a number in [0, 1)"),
    "use_rslora": _TRUTH,
    "use_dora": _TRUTH,
    "fan_in_fan_out": _TRUTH,
    "inference_mode": _TRUTH,
    "init_lora_weights": (lambda v: isinstance(v, bool) or v == "gaussian", "true, false or 'gaussian'"),
    "layers_to_transform": (_or_none(_layers), "a layer's number, or a list of them"),
    "layers_pattern": (_or_none(lambda v: _words(v) or _literal(v)), "the name of the list of layers"),
    "rank_pattern": (_by_name(_rank), "a mapping, module name -> rank >= 1"),
    "alpha_pattern": (_by_name(is_number), "a mapping, module name -> number"),
    "base_model_name_or_path": _NAME,
    "revision": _NAME,
    "peft_version": _NAME,
    "task_type": (lambda v: v in (None, "CAUSAL_LM"), "'CAUSAL_LM'"),
    "runtime_config": (lambda v: isinstance(v, LoraRuntimeConfig), "a LoraRuntimeConfig of PEFT; no file holds one"),
}
_CHECKED_ELSEWHERE = {"r", "peft_type"}


def lora_problems(config: LoraConfig) -> list[str]:
    """What is wrong with ``config``'s fields of PEFT, one phrase each."""
    problems = []
    for field in dataclasses.fields(LoraConfig):
        value = getattr(config, field.name)
        if field.name in SERVED:
            good, expected = SERVED[field.name]
            if not good(value):
                problems.append(f"{field.name}={brief(value)}: expected {expected}")
        elif field.name not in _CHECKED_ELSEWHERE and value != _default(field):
            problems.append(
                f"{field.name}={brief(value)}: DeepMLF does not serve this kind of LoRA on the LM; leave it at "
                f"{_default(field)!r}"
            )
    return problems


def _default(field: Any) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
