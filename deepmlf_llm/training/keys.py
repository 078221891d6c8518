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

TRAINER_DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 20,
    "learning_rate": 5e-4,
    "weight_decay": 1e-2,
    "adam_beta2": 0.95,
    "lr_scheduler_type": "cosine",
    "gradient_accumulation_steps": 1,
    "max_grad_norm": 1.0,
    "per_device_eval_batch_size": 64,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "logging_steps": 10,
    "metric_for_best_model": "mae",
    "seed": 42,
}
"""What a run sets in TrainingArguments unless told otherwise."""

_TRAINER_HELP = {
    "num_train_epochs": "epochs, at most (early stopping may end earlier)",
    "max_steps": "optimizer steps; overrides num_train_epochs when positive",
    "learning_rate": "of fusion tokens, MM Blocks and heads",
    "weight_decay": "of matrices and fusion tokens; norms, biases and gates have none",
    "lr_scheduler_type": "shape of the learning rate over time",
    "warmup_steps": "steps of linear warm-up; overrides warmup_epochs",
    "gradient_accumulation_steps": "batches a step and process",
    "per_device_train_batch_size": "utterances a batch and process; default: from batch_size",
    "per_device_eval_batch_size": "utterances a batch and process in evaluation",
    "max_grad_norm": "largest norm of the gradient; 0 = not clipped",
    "eval_strategy": "when to evaluate on the validation split: epoch or steps",
    "eval_steps": "steps between evaluations, with eval_strategy=steps",
    "save_strategy": "when to write a checkpoint: epoch, steps or no (the best one is always written)",
    "save_steps": "steps between checkpoints, with save_strategy=steps",
    "save_total_limit": "checkpoints kept beside the best one",
    "logging_steps": "steps between lines of metrics.jsonl",
    "metric_for_best_model": "validation metric that selects the adapter; default of classes: f1_weighted",
    "seed": "seed of initialisation, order and dropout",
    "bf16": "compute in bf16 under autocast; default: on CUDA where the GPU can",
    "gradient_checkpointing": "recompute the LM's activations in the backward pass: less memory, more time",
    "report_to": "reporting integrations; default: tensorboard where installed",
}

_OWNED_BY_THE_RUN = {
    "accelerator_config": "batches come from the run's own sampler",
    "auto_find_batch_size": "batch sizes are settings here",
    "average_tokens_across_devices": "always so here",
    "batch_eval_metrics": "metrics are of whole splits",
    "dataloader_drop_last": "nothing is dropped",
    "do_eval": "use eval_strategy",
    "do_predict": "the test split is read once, at the end",
    "do_train": "use `deepmlf evaluate` to evaluate only",
    "eval_do_concat_batches": "metrics are of whole splits",
    "fp16": "use bf16",
    "fp16_full_eval": "evaluation computes as training does",
    "bf16_full_eval": "evaluation computes as training does",
    "fsdp": "use DeepSpeed: --ds zero3",
    "fsdp_config": "use DeepSpeed: --ds zero3",
    "group_by_length": "see the run's own key",
    "ignore_data_skip": "a resumed run goes on exactly",
    "include_for_metrics": "only predictions are kept",
    "label_names": "set by the recipe",
    "label_smoothing_factor": "polarity is regressed",
    "length_column_name": "use group_by_length",
    "load_best_model_at_end": "always so here",
    "local_rank": "set by the launcher",
    "logging_nan_inf_filter": "a loss that is not finite ends the run",
    "parallelism_config": "not supported",
    "prediction_loss_only": "metrics need predictions",
    "push_to_hub": "push the finished adapter yourself",
    "remove_unused_columns": "set by the recipe",
    "restore_callback_states_from_checkpoint": "callbacks here hold no state",
    "resume_from_checkpoint": "the same command again resumes",
    "save_only_model": "checkpoints must be able to resume",
    "train_sampling_strategy": "use group_by_length",
    "use_cache": "set by the model",
    "use_liger_kernel": "the frozen LM stays as it is",
}


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
    """Why ``name`` is no key: who decides it instead, or that it is unknown and which key is near."""
    if name in _OWNED_BY_THE_RUN and name not in all_keys():
        return f"{name} is not a setting here: {_OWNED_BY_THE_RUN[name]}"
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

    hidden = {"output_dir", "deepspeed", *_OWNED_BY_THE_RUN}
    keys = []
    for f in dataclasses.fields(TrainingArguments):
        if f.init and f.name not in hidden and not f.name.startswith(("hub_", "trackio_", "fsdp")):
            default = TRAINER_DEFAULTS.get(f.name, _default(f))
            rule = trainer_rules().get(f.name)
            keys.append(Key(f.name, "trainer", f.type, default, _TRAINER_HELP.get(f.name, ""), rule))
    return sorted(keys, key=lambda key: (not key.help, list(_TRAINER_HELP).index(key.name) if key.help else key.name))


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
