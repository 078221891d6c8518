"""What one run is: its own settings, the method's and the Trainer's, strict, in one place."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from deepmlf_llm import shipped
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.config.rules import brief, rule_problems
from deepmlf_llm.errors import ConfigError, Problems
from deepmlf_llm.planning.steps import Steps, planned_steps
from deepmlf_llm.reading import read_json
from deepmlf_llm.training.identity_keys import FIRST_RUNS, LATER_RUN_KEYS, VOLATILE
from deepmlf_llm.training.keys import RENAMED, Key, all_keys, refuse, sections
from deepmlf_llm.training.run_keys import TEXT_ALONE, RunKeys
from deepmlf_llm.training.trainer_keys import TRAINER_DEFAULTS


@dataclass
class RunSettings(RunKeys):
    """Settings of one training run.

    ``method`` holds the keys of :class:`~deepmlf_llm.config.DeepMLFConfig` that differ from its defaults (nested), and
    ``trainer`` those of transformers' ``TrainingArguments``. Make one with :meth:`from_dict`, which checks every key.

    Raises:
        ConfigError: a setting is out of range; the message names all that are.
    """

    method: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._given_batch_size = False
        self.first_order = False
        """Whether the order of utterances is that of the first runs, cut by batches and not by steps."""
        problems = Problems(ConfigError, "settings")
        problems.messages.extend(rule_problems(self))
        problems.raise_if_any()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "settings") -> RunSettings:
        """Settings from names to values, nested or dotted (``{"objective": {"gamma": 1.0}}``, ``"objective.gamma"``).

        Raises:
            ConfigError: unknown keys, values of another type, values out of range; all of them at once.
        """
        problems = Problems(ConfigError, source)
        flat = flatten(values)
        owned: dict[str, dict[str, Any]] = {"run": {}, "method": {}, "trainer": {}}
        for name, value in flat.items():
            key = all_keys().get(name)
            if key is None:
                section = f"{name}={brief(value)}: expected a mapping of settings"
                problems.check(False, section if name in sections() else refuse(name))
                continue
            try:
                owned[key.owner][name] = key.coerce(value)
            except ConfigError as error:
                problems.check(False, str(error))
        problems.raise_if_any()
        settings = cls(**owned["run"], method=_nest(owned["method"]), trainer=owned["trainer"])
        settings._given_batch_size = "batch_size" in owned["run"]
        problems.messages.extend(settings._contradictions())
        try:
            DeepMLFConfig.from_dict(settings.method_values())  # what its settings say together
        except ConfigError as error:
            problems.messages.append(str(error).removeprefix("DeepMLFConfig: "))
        problems.raise_if_any()
        return settings

    def _contradictions(self) -> list[str]:
        """What is wrong with keys of the run together, one phrase each."""
        found = []
        if self.init_from is not None and self.av_encoder_from is not None:
            found.append("init_from and av_encoder_from: the adapter has an AV encoder of its own; give one of them")
        if self.log_to is not None and self.trainer.get("report_to") is not None:
            found.append("log_to and report_to say the same: give one of them")
        if self.lm_init == "random" and self.quantization != "none":
            found.append(f"quantization={self.quantization!r} with lm_init='random': random weights are not quantized")
        if self.method.get("freeze_av_encoder"):
            for name in ("av_learning_rate", "av_weight_decay"):
                if getattr(self, name) is not None:
                    found.append(f"{name} with freeze_av_encoder: the AV encoder is not trained; leave {name} out")
        if self.modalities == TEXT_ALONE:
            found.extend(self.modality_problems(()))
        if self.average_last and self.trainer_values()["save_strategy"] == "best":
            found.append(
                f"average_last={self.average_last} with save_strategy='best': the last evaluations are averaged from "
                "their checkpoints, and 'best' writes none of one that is not the best; set save_strategy to 'epoch' "
                "or 'steps'"
            )
        if not self.cmixup_alpha:
            for name in ("cmixup_bandwidth", "cmixup_labels"):
                value = getattr(self, name)
                if value != LATER_RUN_KEYS[name]:
                    found.append(f"{name}={value!r} without cmixup_alpha: nothing is blended; set cmixup_alpha above 0")
        return found

    def modality_problems(self, modalities: Collection[str]) -> list[str]:
        """What is asked of audio and vision where the run reads none, one phrase.

        Args:
            modalities: names of those that it reads.
        """
        asked = [name for name in ("modality_dropout", "frame_dropout", "cmixup_alpha") if getattr(self, name)]
        if modalities or not asked:
            return []
        return [f"{', '.join(asked)}: changes audio and vision, and this run reads no modality: leave it out"]

    def to_dict(self) -> dict[str, Any]:
        """All that was decided, nested, by the names that :meth:`from_dict` reads: every setting of the run and of the
        method, and what differs from TrainingArguments' own defaults."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if "help" in f.metadata}
        defaults = {key.name: key.default for key in all_keys().values() if key.owner == "method"}
        return {**own, **_nest({**defaults, **flatten(self.method)}), **self.trainer_values()}

    def trainer_values(self) -> dict[str, Any]:
        """TrainingArguments by name: the run's defaults under what was given."""
        return {**TRAINER_DEFAULTS, **self.trainer}

    def method_values(self) -> dict[str, Any]:
        """DeepMLFConfig by its own names (``lora_r`` is ``r`` there)."""
        return {RENAMED.get(name, name): value for name, value in self.method.items()}

    def of_first_runs(self) -> RunSettings:
        """The same settings as the first runs understood them: a key of :data:`FIRST_RUNS` that is not given means what
        they computed."""
        return self.changed(method=_nest({**FIRST_RUNS, **flatten(self.method)}))

    def changed(self, **values: Any) -> RunSettings:
        """The same settings but for these."""
        settings = dataclasses.replace(self, **values)
        settings._given_batch_size, settings.first_order = self._given_batch_size, self.first_order
        return settings

    def with_trainer(self, **values: Any) -> RunSettings:
        """The same settings with other values of the Trainer."""
        settings = dataclasses.replace(self, trainer={**self.trainer, **values})
        settings._given_batch_size, settings.first_order = self._given_batch_size, self.first_order
        return settings

    def fingerprint(self, processes: int, base_model: str, data: str) -> str:
        """The same for a run and its continuation: sha256 of all that changes what is computed.

        Args:
            processes: how many train together.
            base_model: what ``base_model`` stands for here (``auto`` depends on what is installed).
            data: fingerprint of the data.
        """
        kept = self.decided()
        engine = shipped.locate(shipped.DEEPSPEED, self.deepspeed) if self.deepspeed else None
        if engine is not None and engine.is_file():
            kept["deepspeed"] = read_json(engine)
        kept.update(base_model=base_model, data=data, processes=processes)
        kept["settings_sha256"] = None  # was a key in the first runs, though it never said anything
        text = json.dumps(kept, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def decided(self) -> dict[str, Any]:
        """All that changes what is computed, nested, without what is as it was before there was a key for it."""
        all_of_it = {name: value for name, value in self.to_dict().items() if name not in VOLATILE}
        missing, as_before = object(), {**FIRST_RUNS, **LATER_RUN_KEYS}
        kept = _nest({k: v for k, v in flatten(all_of_it).items() if v != as_before.get(k, missing)})
        if not self.missing:
            del kept["missing"], kept["mask_seed"]
        return kept

    def resolve_batch(self, processes: int) -> tuple[int, int]:
        """Most utterances a batch and process, and batches a step.

        Rounded up where ``batch_size`` cannot be split evenly; a step has no more than ``batch_size`` all the same.

        Raises:
            ConfigError: ``batch_size`` and ``per_device_train_batch_size`` were both given and disagree.
        """
        accumulated = self.trainer_values()["gradient_accumulation_steps"]
        per_device = self.trainer.get("per_device_train_batch_size")
        if per_device is None:
            return -(-self.batch_size // (accumulated * processes)), accumulated
        if self._given_batch_size and per_device * accumulated * processes != self.batch_size:
            raise ConfigError(
                f"batch_size={self.batch_size}, but per_device_train_batch_size={per_device} x "
                f"gradient_accumulation_steps={accumulated} x {processes} processes = "
                f"{per_device * accumulated * processes}; give one of them only"
            )
        return per_device, accumulated

    def step_size(self, processes: int) -> int:
        """Most utterances a step: ``batch_size``, on any number of processes, or what the batches that are given make.

        Raises:
            ConfigError: as :meth:`resolve_batch`.
        """
        per_device, accumulated = self.resolve_batch(processes)
        given = self.trainer.get("per_device_train_batch_size") is not None
        return per_device * accumulated * processes if given or self.first_order else self.batch_size

    def planned_steps(self, utterances: int, processes: int) -> Steps:
        """Optimizer steps of the run; ``utterances`` are those of the training split.

        Raises:
            ConfigError: as :meth:`resolve_batch`.
        """
        per_device, accumulated = self.resolve_batch(processes)
        values = self.trainer_values()
        epochs, most = values["num_train_epochs"], values.get("max_steps", -1)
        step = None if self.first_order else self.step_size(processes)
        return planned_steps(utterances, per_device, processes, accumulated, epochs, most, step)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted names; mappings that are themselves a value stay whole."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and not prefix and name in sections():
            flat.update(flatten(value, f"{path}."))
        else:
            flat[path] = value
    return flat


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        section, dot, name = path.partition(".")
        if dot:
            nested.setdefault(section, {})[name] = value
        else:
            nested[path] = value
    return nested


def key_of(name: str) -> Key:
    """The key called ``name``.

    Raises:
        ConfigError: there is none.
    """
    if name not in all_keys():
        raise ConfigError(refuse(name))
    return all_keys()[name]
