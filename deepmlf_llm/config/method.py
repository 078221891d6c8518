"""What a DeepMLF adapter is: every setting of the method, strict, and the facts that are recorded with its weights.

:class:`DeepMLFConfig` is a PEFT config, a ``LoraConfig``: ``peft.get_peft_model(base, DeepMLFConfig())`` works, and
the fields ``r``, ``lora_alpha``, ``target_modules``, ``use_rslora``, ``use_dora`` mean what PEFT says they mean: LoRA
on the language model itself, off (``r=0``) by default. The settings themselves, with help text and rule, are in
:mod:`deepmlf_llm.config.method_settings`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from deepmlf_llm.config.design import design_problems
from deepmlf_llm.config.facts import fingerprint_problems, standardisation_problems
from deepmlf_llm.config.labels import label_problems, outputs_of
from deepmlf_llm.config.lora import lora_problems
from deepmlf_llm.config.method_settings import MethodSettings
from deepmlf_llm.config.names import name_problem
from deepmlf_llm.config.placement import parse_fusion_layers
from deepmlf_llm.config.readout import readout_problems
from deepmlf_llm.config.rules import (
    Rule,
    brief,
    choice,
    integer,
    is_integer,
    mapping,
    optional,
    rule_problems,
    setting,
    word,
)
from deepmlf_llm.config.sections import SECTIONS, ModalityConfig, build_section
from deepmlf_llm.config.topology import topology_problems
from deepmlf_llm.errors import ConfigError, Problems, suggest
from deepmlf_llm.reading import read_yaml

PEFT_TYPE = "DEEPMLF"
SCHEMA_VERSION = 2
NO_LM_LORA = "dummy-target-modules"  # PEFT's own word for "adapt no module of the base model"
_VERSION = Rule(
    lambda value: is_integer(value) and 1 <= value <= SCHEMA_VERSION,
    f"an integer >= 1; this package reads up to {SCHEMA_VERSION}; upgrade deepmlf_llm",
)


@dataclass
class DeepMLFConfig(MethodSettings):
    """Settings of one DeepMLF adapter: its choices, and what is recorded with its weights.

    Raises:
        ConfigError: any setting is out of range; the message names all that are.
    """

    after_saving: ClassVar[Callable[[Path], None] | None] = None
    """What seals a directory that PEFT has saved; :mod:`deepmlf_llm.adapters.seal` puts itself here."""

    schema_version: int = setting("version of the adapter format", _VERSION, SCHEMA_VERSION)
    base_fingerprint: dict[str, Any] | None = setting("what identifies the base model", None, None)
    base_model_relative: str | None = setting(
        "path of the base model from the adapter's directory, where it is a path", optional(word("a path")), None
    )
    base_quantization: str | None = setting(
        "what the base was loaded in while training: none, nf4, fp4, int8",
        optional(choice("none", "nf4", "fp4", "int8")),
        None,
    )
    base_init_seed: int | None = setting(
        "seed of the base's random weights; null: those of its files", optional(integer(0, 1 << 32)), None
    )
    package_versions: dict[str, str] | None = setting(
        "versions that saved the adapter", optional(mapping("a mapping, package -> version")), None
    )
    weights_sha256: str | None = setting(
        "of the adapter's weights, in the file beside them", optional(word("a sha256 in hexadecimal digits")), None
    )
    settings_sha256: str | None = setting(
        "of the other settings in an adapter's file, see adapters/seal.py",
        optional(word("a sha256 in hexadecimal digits")),
        None,
    )

    def __post_init__(self) -> None:
        problems = Problems(ConfigError, "DeepMLFConfig")
        self._read_version_1()
        for name, section in SECTIONS.items():
            setattr(self, name, build_section(section, getattr(self, name), name, problems))
        # By name: PEFT sorts the keys of what it saves, and the AV encoder joins modalities in this order.
        given: Any = self.modalities
        problems.check(isinstance(given, dict), f"modalities={brief(given)}: expected a mapping, name -> settings")
        self.modalities = {
            str(name): build_section(ModalityConfig, given[name], f"modalities.{name}", problems)
            for name in (sorted(given, key=str) if isinstance(given, dict) else ())
        }
        try:
            self.fusion_layers = parse_fusion_layers(self.fusion_layers)
        except ConfigError as error:
            problems.messages.append(str(error))
        problems.messages.extend(lora_problems(self))
        self._check_lm_lora(problems)
        self.num_outputs = outputs_of(self.dataset, self.task, self.num_outputs)
        self.task_type: str = self.task_type or "CAUSAL_LM"
        self._check(problems)
        self._check_modalities(problems)
        problems.raise_if_any()
        try:
            super().__post_init__()
        except ValueError as error:  # PEFT's own rules, among its settings of LoRA
            raise ConfigError(f"DeepMLFConfig: {' '.join(str(error).split())}") from error
        self.peft_type = PEFT_TYPE

    @property
    def has_lm_lora(self) -> bool:
        return self.r > 0

    @property
    def reads_text_alone(self) -> bool:
        """No modality beside the text: fusion tokens and FFWs stay, nothing is heard or seen."""
        return not self.modalities

    @property
    def blocks_change_text(self) -> bool:
        """MM Blocks write into the text's states; else these are the frozen LM's in every layer."""
        return self.ffw_scope == "joint" or (self.gca_queries != "tokens" and not self.reads_text_alone)

    def _read_version_1(self) -> None:
        """Settings of format 1 say nothing of the order of pooling and layers: it was pooled after them."""
        if self.schema_version == 1 and not isinstance(self.schema_version, bool):
            given: Any = self.av_encoder
            if isinstance(given, dict):
                self.av_encoder = {"pool": "after", **given}  # type: ignore[assignment]
            self.schema_version = SCHEMA_VERSION

    def _check_lm_lora(self, problems: Problems) -> None:
        target: Any = self.target_modules
        if self.r == 0:
            problems.check(
                target in (None, NO_LM_LORA),
                f"target_modules={brief(target)}: LoRA on the LM is off (r=0); set r, or leave target_modules out",
            )
            target = NO_LM_LORA
        elif isinstance(target, str) and target not in (NO_LM_LORA, "all-linear"):
            target = [target]  # of which PEFT would make a regular expression on whole names
        self.target_modules: Any = None if self.r != 0 and target == NO_LM_LORA else target

    def _check(self, problems: Problems) -> None:
        problems.messages.extend(rule_problems(self))
        for name in SECTIONS:
            problems.messages.extend(rule_problems(getattr(self, name), f"{name}."))
        problems.messages.extend(self.av_encoder.problems())
        problems.messages.extend(design_problems(self))
        problems.messages.extend(readout_problems(self))
        problems.messages.extend(label_problems(self))
        problems.messages.extend(fingerprint_problems(self.base_fingerprint))

    def _check_modalities(self, problems: Problems) -> None:
        for name, modality in self.modalities.items():
            reason = name_problem(name)
            problems.check(not reason, f"modalities: {brief(name)} cannot name a modality ({reason})")
            problems.messages.extend(rule_problems(modality, f"modalities.{name}."))
            problems.messages.extend(standardisation_problems(name, modality.standardisation, modality.dim))
        problems.messages.extend(topology_problems(self))

    @classmethod
    def check_kwargs(cls, **kwargs: Any) -> dict[str, Any]:
        """Strict where PEFT warns: an unknown key that says anything is refused, by name.

        One without a value is let through: another version of PEFT may have written it into an adapter's file.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = {key: value for key, value in kwargs.items() if key not in known}
        # Fields of another PEFT version that are null, false or empty change nothing.
        problems = Problems(ConfigError, "DeepMLFConfig")
        for key, value in unknown.items():
            problems.check(not value, f"unknown key {brief(key)}{suggest(key, known)}")
        problems.raise_if_any()
        return super().check_kwargs(**{key: value for key, value in kwargs.items() if key in known})

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """As in PEFT, which has written the weights just before; then the files are sealed, so that damage is found."""
        super().save_pretrained(save_directory, **kwargs)
        if DeepMLFConfig.after_saving is not None:
            DeepMLFConfig.after_saving(Path(save_directory))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DeepMLFConfig:
        """From a mapping of these fields.

        Raises:
            ConfigError: unknown keys, each with the nearest known one, or settings out of range.
        """
        if not isinstance(values, dict):
            raise ConfigError(f"DeepMLFConfig: expected a mapping of settings, not {brief(values)}")
        if odd := [brief(key) for key in values if not isinstance(key, str)]:
            raise ConfigError(f"DeepMLFConfig: unknown key {', '.join(odd)}: expected names")
        return cls(**cls.check_kwargs(**values))

    @classmethod
    def from_yaml(cls, path: str | Path) -> DeepMLFConfig:
        """From a YAML (or JSON) file of these fields.

        Raises:
            ConfigError: no such file, no mapping, or as :meth:`from_dict`; the message names the file.
        """
        try:
            values = read_yaml(path)
            if not isinstance(values, dict):
                raise ConfigError("expected a mapping of settings")
            return cls.from_dict(values)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, default=sorted)


PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = DeepMLFConfig  # open to out-of-tree methods by name
