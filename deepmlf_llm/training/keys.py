"""Every key that a run understands, from the dataclasses that own them: names, types, defaults, help.

Three owners: the run itself (:class:`~deepmlf_llm.training.settings.RunSettings`), the method
(:class:`~deepmlf_llm.config.DeepMLFConfig`, nested settings dotted: ``objective.gamma``) and transformers'
``TrainingArguments``, by its own names.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from functools import cache
from typing import Any

from deepmlf_llm.config.lora import SERVED
from deepmlf_llm.config.rules import RULE, Rule, brief, is_number
from deepmlf_llm.errors import ConfigError, suggest
from deepmlf_llm.training.ranges import trainer_rules
from deepmlf_llm.training.run_keys import RunKeys
from deepmlf_llm.training.trainer_keys import OWNED_BY_THE_RUN, TRAINER_DEFAULTS, TRAINER_HELP

RENAMED = {"lora_r": "r"}
"""Key of a run -> field of DeepMLFConfig, where "r" alone would say too little."""

_FROM_PEFT = {
    "lora_alpha": "scale of LoRA on the LM is alpha / rank",
    "lora_dropout": "dropout before LoRA on the LM",
    "target_modules": "LM modules that LoRA adapts: names, or all-linear; default: PEFT's choice for the family",
    "use_rslora": "scale LoRA on the LM by alpha / sqrt(rank)",
    "use_dora": "weight-decomposed LoRA on the LM (DoRA)",
}
# What the data, the base model or the file format decide, not the user.
_RECORDED = {
    "schema_version",
    "unimodal_targets",
    "base_fingerprint",
    "base_model_relative",
    "base_quantization",
    "base_init_seed",
    "package_versions",
    "weights_sha256",
    "settings_sha256",
    "verbalised_ids",
}
_NOT_THE_USERS = {"r", "modalities", "dataset", "task", "num_outputs", *_RECORDED}
_NOT_THE_USERS_DOTTED = {"text.case"}


@dataclass(frozen=True)
class Key:
    """One setting: its (dotted) name, who owns it, its type, default, and what it says in ``--help``."""

    name: str
    owner: str  # "run", "method" or "trainer"
    hint: Any
    default: Any
    help: str
    rule: Rule | None = None

    @property
    def takes_yaml(self) -> bool:
        """Whether it can hold a list or a mapping."""
        return any((typing.get_origin(m) or m) in (list, tuple, set, dict) for m in _members(self.hint))

    def coerce(self, value: Any) -> Any:
        """``value`` as this key's type.

        Raises:
            ConfigError: it cannot be read as one, or is out of range.
        """
        try:
            read = _coerce(value, self.hint)
            # YAML reads the words yes and no as truth values: `eval_strategy: no` means the word, `base_model: no` not.
            if (
                isinstance(value, bool)
                and isinstance(read, str)
                and read not in (self.rule.choices if self.rule else ())
            ):
                raise ValueError
        except (ValueError, OverflowError):
            expected = self.rule.expected if self.rule else describe(self.hint)
            raise ConfigError(f"{self.name}={brief(value)}: expected {expected}") from None
        if self.rule is not None and not self.rule.good(read):
            raise ConfigError(f"{self.name}={brief(value)}: expected {self.rule.expected}")
        return read


def refuse(name: str) -> str:
    """Why ``name`` is not a key: who decides it instead, or that it is unknown and which key is near."""
    if name in OWNED_BY_THE_RUN and name not in all_keys():
        return f"{name} is not a setting here: {OWNED_BY_THE_RUN[name]}"
    return f"unknown key {name!r}{suggest(name, all_keys())}"


@cache
def all_keys() -> dict[str, Key]:
    """Name -> key, in the order of ``--help``."""
    return {key.name: key for key in [*_run_keys(), *_method_keys(), *_trainer_keys()]}


def sections() -> set[str]:
    """Names that hold nested settings: ``objective``, ``av_encoder``, ..."""
    return {name.partition(".")[0] for name in all_keys() if "." in name}


def _run_keys() -> list[Key]:
    hints = typing.get_type_hints(RunKeys)
    return [
        Key(f.name, "run", hints[f.name], _default(f), f.metadata["help"], f.metadata.get(RULE))
        for f in dataclasses.fields(RunKeys)
        if "help" in f.metadata
    ]


def _method_keys() -> list[Key]:
    from deepmlf_llm.config.method import DeepMLFConfig
    from deepmlf_llm.config.sections import SECTIONS

    hints = typing.get_type_hints(DeepMLFConfig)
    fields = {f.name: f for f in dataclasses.fields(DeepMLFConfig)}
    keys = []
    for name, f in fields.items():
        if name in SECTIONS:
            keys += _section_keys(name, SECTIONS[name])
        elif RULE in f.metadata and name not in _NOT_THE_USERS:
            keys.append(Key(name, "method", hints[name], _default(f), f.metadata["help"], f.metadata.get(RULE)))
    for name, real in RENAMED.items():
        of = fields[real].metadata
        keys.append(Key(name, "method", hints[real], _default(fields[real]), of["help"], of.get(RULE)))
    for name, text in _FROM_PEFT.items():
        keys.append(Key(name, "method", hints[name], _default(fields[name]), text, Rule(*SERVED[name])))
    return keys


def _section_keys(name: str, section: type) -> list[Key]:
    hints = typing.get_type_hints(section)
    dotted = ((f, f"{name}.{f.name}") for f in dataclasses.fields(section))
    return [
        Key(path, "method", hints[f.name], _default(f), f.metadata["help"], f.metadata.get(RULE))
        for f, path in dotted
        if path not in _NOT_THE_USERS_DOTTED
    ]


def _trainer_keys() -> list[Key]:
    from transformers import TrainingArguments

    hidden = {"output_dir", "deepspeed", *OWNED_BY_THE_RUN}
    keys = []
    for f in dataclasses.fields(TrainingArguments):
        if f.init and f.name not in hidden and not f.name.startswith(("hub_", "trackio_", "fsdp")):
            default = TRAINER_DEFAULTS.get(f.name, _default(f))
            rule = trainer_rules().get(f.name)
            keys.append(Key(f.name, "trainer", f.type, default, TRAINER_HELP.get(f.name, ""), rule))
    return sorted(keys, key=lambda key: (not key.help, list(TRAINER_HELP).index(key.name) if key.help else key.name))


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None


def _members(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(member for part in typing.get_args(hint) for member in _members(part))
    return (hint,)


def describe(hint: Any) -> str:
    """A type in words, for messages."""
    words = {bool: "true or false", int: "an integer", float: "a number", str: "text", type(None): "null"}
    parts = []
    for member in _members(hint):
        origin = typing.get_origin(member) or member
        if origin is typing.Literal:
            parts.append(" or ".join(map(repr, typing.get_args(member))))
        elif origin in (list, tuple, set):
            parts.append("a list")
        else:
            parts.append("a mapping" if origin is dict else words.get(origin, "text"))
    return " or ".join(dict.fromkeys(parts))


def _coerce(value: Any, hint: Any) -> Any:
    members = _members(hint)
    if hint is Any or Any in members:
        return value
    if value is None:
        if type(None) in members:
            return None
        raise ValueError
    if isinstance(value, str) and "," not in value and str in members:
        return value  # a word is a word, not a list of one
    for member in sorted(members, key=_strictest_first):
        try:
            return _coerce_one(value, typing.get_origin(member) or member, member)
        except ValueError:
            continue
    raise ValueError


def _strictest_first(member: Any) -> int:
    order = [bool, int, float, list, dict]
    origin = typing.get_origin(member) or member
    return order.index(origin) if origin in order else len(order)


def _coerce_one(value: Any, origin: Any, member: Any) -> Any:
    if origin is typing.Literal and value in typing.get_args(member):
        return value
    if origin is bool and isinstance(value, bool):
        return value
    if origin is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if origin is float and not isinstance(value, bool) and isinstance(value, (int, float, str)):
        number = float(value)  # YAML reads 1e-4 as text
        if math.isfinite(number):
            return number
    if origin in (list, tuple, set):
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        if isinstance(value, (list, tuple)):
            return list(value)
    if origin is dict and isinstance(value, dict):
        return value
    if _is_text(origin) and (isinstance(value, (str, bool)) or is_number(value)):
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
    raise ValueError


def _is_text(origin: Any) -> bool:
    return isinstance(origin, type) and origin not in (bool, int, float, list, tuple, set, dict, type(None))
