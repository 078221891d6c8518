"""What a DeepMLF adapter is: every setting of the method, strict, with its help text.

:class:`DeepMLFConfig` is a PEFT config, a ``LoraConfig``: ``peft.get_peft_model(base, DeepMLFConfig())`` works, and
the fields ``r``, ``lora_alpha``, ``target_modules``, ``use_rslora``, ``use_dora`` mean what PEFT says they mean: LoRA
on the language model itself, off (``r=0``) by default. Names and defaults follow DeepMLF (arXiv 2504.11082).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from peft import LoraConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from deepmlf_llm.config.facts import fingerprint_problems, is_number, standardisation_problems
from deepmlf_llm.config.lora import lora_problems
from deepmlf_llm.config.placement import parse_fusion_layers
from deepmlf_llm.errors import ConfigError, Problems, suggest

PEFT_TYPE = "DEEPMLF"
SCHEMA_VERSION = 1
NO_LM_LORA = "dummy-target-modules"  # PEFT's own word for "adapt no module of the base model"

CHOICES: dict[str, tuple[Any, ...]] = {
    "ffw_scope": ("joint", "fusion"),
    "ffw_weights": ("shared", "copy"),
    "gate": ("sigmoid", "tanh", "none"),
    "norm_init": ("fresh", "lm"),
    "head_norm": ("batch", "layer"),
    "dataset": ("mosi", "mosei", "sims"),
    "objective.loss": ("l1", "mse"),
    "text.case": ("lower", "sentence", "keep"),
}
LABEL_RANGES = {"mosi": (-3.0, 3.0), "mosei": (-3.0, 3.0), "sims": (-1.0, 1.0)}


def _help(text: str, default: Any = dataclasses.MISSING, factory: Any = dataclasses.MISSING) -> Any:
    if factory is not dataclasses.MISSING:
        return field(default_factory=factory, metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass
class ModalityConfig:
    """One sequence of feature frames beside the text, and how its features were made."""

    dim: int = _help("width of one frame of features; must be given", 0)
    frame_rate: float | None = _help("frames per second, if known", None)
    features: dict[str, Any] = _help("how the features were made (travels with the adapter)", factory=dict)
    standardisation: dict[str, Any] | None = _help("mean, std and clip of the training split", None)


@dataclass
class AVEncoderConfig:
    """E_AV: a small Transformer per modality, pooled in time and joined (paper, section 3)."""

    width: int = _help("d_av, width of the AV context", 30)
    num_layers: int = _help("pre-norm Transformer layers per modality", 3)
    num_heads: int = _help("attention heads", 6)
    ffw_width: int = _help("hidden width of the feed-forward layers", 120)
    dropout: float = _help("dropout after the positions, on attention and on both residuals", 0.1)
    input_dropout: float = _help("dropout on the raw features", 0.0)
    max_frames: int = _help("T, frames of the AV context after pooling in time", 50)


@dataclass
class ObjectiveConfig:
    """L = L_task + lambda_fusion L_fusion + lambda_av L_av + lambda_text L_text + gamma L_LM."""

    lambda_fusion: float = _help("weight of the fusion tokens' own polarity loss", 0.4)
    lambda_av: float = _help("weight of the AV context's own polarity loss", 0.8)
    lambda_text: float = _help("weight of the last text token's own polarity loss", 0.8)
    gamma: float = _help("weight of next-token cross-entropy on the transcript", 0.0)
    loss: str = _help("regression loss: l1 or mse", "l1")


@dataclass
class SeqAugConfig:
    """SeqAug and its ablations: augmentation of sequences of embeddings, in training only."""

    p_apply: float = _help("probability that a batch's text embeddings are augmented", 0.0)
    p_feat: float = _help("share of embedding dimensions that take values from permuted steps", 0.0)
    av_p_apply: float = _help("the same for raw features of the other modalities", 0.0)
    av_p_feat: float = _help("share of raw feature dimensions", 0.0)
    embedding_dropout: float = _help("ablation: dropout on text embeddings", 0.0)
    embedding_noise: float = _help("ablation: standard deviation of Gaussian noise on text embeddings", 0.0)

    @property
    def changes_text(self) -> bool:
        return (self.p_apply > 0 and self.p_feat > 0) or self.embedding_dropout > 0 or self.embedding_noise > 0


@dataclass
class TextConfig:
    """How transcripts become tokens."""

    case: str = _help("lower, sentence or keep: MOSI's transcripts are upper case", "keep")
    max_tokens: int = _help("longer transcripts are cut, and counted", 50)
    template: str = _help("what the LM reads, with {text} for the transcript, e.g. '{text} Sentiment:'", "{text}")


SECTIONS: dict[str, type] = {
    "av_encoder": AVEncoderConfig,
    "objective": ObjectiveConfig,
    "seqaug": SeqAugConfig,
    "text": TextConfig,
}


@dataclass
class DeepMLFConfig(LoraConfig):
    """Settings of one DeepMLF adapter.

    Raises:
        ConfigError: any setting is out of range; the message names all that are.
    """

    r: int = _help("LoRA rank on the language model itself; 0 = none", 0)
    num_fusion_tokens: int = _help("n, learnable fusion tokens after the text", 8)
    fusion_layers: Any = _help("MM Blocks after these LM layers: a list, 'last:k', 'even:k' or 'from:i'", "even:7")
    ffw_scope: str = _help("joint (paper: FFW over text and fusion tokens) or fusion (fusion tokens only)", "joint")
    ffw_weights: str = _help("shared (the LM block's frozen FFW + LoRA) or copy (own, fully trained)", "shared")
    ffw_lora_r: int = _help("LoRA rank on a shared FFW; 0 = frozen as it is", 16)
    ffw_lora_alpha: float = _help("scale of that LoRA is alpha / r", 16.0)
    ffw_lora_dropout: float = _help("dropout before that LoRA", 0.0)
    dequantize_copy: bool = _help("allow ffw_weights='copy' of a 4-bit or 8-bit FFW: it is dequantised to fp32", False)
    gate: str = _help("sigmoid (paper: opens at 0.5), tanh (Flamingo: starts shut) or none", "sigmoid")
    norm_init: str = _help("norms start as: lm (the LM block's own, which its FFW expects) or fresh (paper)", "lm")
    gca_heads: int | None = _help("heads of gated cross-attention; default: the LM's", None)
    gca_head_width: int | None = _help("width of one such head; default: LM width / heads", None)
    modalities: dict[str, ModalityConfig] = _help("name -> settings of each modality beside the text", factory=dict)
    av_encoder: AVEncoderConfig = _help("the AV encoder", factory=AVEncoderConfig)
    objective: ObjectiveConfig = _help("weights of the losses", factory=ObjectiveConfig)
    seqaug: SeqAugConfig = _help("augmentation in training", factory=SeqAugConfig)
    text: TextConfig = _help("how transcripts become tokens", factory=TextConfig)
    head_width: int = _help("hidden width of the task head", 64)
    head_norm: str = _help("norm inside the task head: batch (paper) or layer", "batch")
    head_dropout: float = _help("dropout before the task head", 0.0)
    num_outputs: int = _help("values regressed per utterance", 1)
    dataset: str = _help("label rule: mosi, mosei or sims", "mosi")
    schema_version: int = _help("version of the adapter format", SCHEMA_VERSION)
    base_fingerprint: dict[str, Any] | None = _help("what identifies the base model", None)
    base_quantization: str | None = _help("what the base was loaded in while training: none, nf4, fp4, int8", None)
    package_versions: dict[str, str] | None = _help("versions that saved the adapter", None)
    weights_sha256: str | None = _help("of the adapter's weights, in the file beside them", None)
    settings_sha256: str | None = _help("of the other settings in an adapter's file, see settings_digest", None)

    def __post_init__(self) -> None:
        problems = Problems(ConfigError, "DeepMLFConfig")
        for name, section in SECTIONS.items():
            setattr(self, name, _section(problems, section, getattr(self, name), name))
        # By name: PEFT sorts the keys of what it saves, and the AV encoder joins modalities in this order.
        given: Any = self.modalities or {}
        problems.check(isinstance(given, dict), f"modalities={given!r}: expected a mapping, name -> settings")
        self.modalities = {
            str(name): _section(problems, ModalityConfig, given[name], f"modalities.{name}")
            for name in (sorted(given, key=str) if isinstance(given, dict) else ())
        }
        try:
            self.fusion_layers = parse_fusion_layers(self.fusion_layers)
        except ConfigError as error:
            problems.messages.append(str(error))
        problems.messages.extend(lora_problems(self))
        self._check_lm_lora(problems)
        self.task_type: str = self.task_type or "CAUSAL_LM"
        self._check(problems)
        self._check_modalities(problems)
        problems.raise_if_any()
        super().__post_init__()
        self.peft_type = PEFT_TYPE

    @property
    def has_lm_lora(self) -> bool:
        return self.r > 0

    def _check_lm_lora(self, problems: Problems) -> None:
        target: Any = self.target_modules
        if self.r == 0:
            problems.check(
                target in (None, NO_LM_LORA),
                f"target_modules={target!r}: LoRA on the LM is off (r=0); set r, or leave target_modules out",
            )
            target = NO_LM_LORA
        self.target_modules: Any = None if self.r != 0 and target == NO_LM_LORA else target

    def _check(self, problems: Problems) -> None:
        for name, choices in CHOICES.items():
            value = _lookup(self, name)
            problems.check(value in choices, f"{name}={value!r}: expected one of {', '.join(map(repr, choices))}")
        for name, low in _MINIMA.items():
            value = _lookup(self, name)
            good = isinstance(value, int) and not isinstance(value, bool) and value >= low
            problems.check(
                good or (value is None and name in _OPTIONAL), f"{name}={value!r}: expected an integer >= {low}"
            )
        for name in _PROBABILITIES:
            value = _lookup(self, name)
            closed = "p_" in name  # a share may be 1; dropping out everything leaves nothing to learn from
            good = is_number(value) and (0 <= value < 1 or (closed and value == 1))
            problems.check(good, f"{name}={value!r}: expected a number in [0, 1{']' if closed else ')'}")
        for name in _NON_NEGATIVE:
            value = _lookup(self, name)
            problems.check(is_number(value) and value >= 0, f"{name}={value!r}: expected a number >= 0")
        problems.check(
            str(self.text.template).count("{text}") == 1,
            f"text.template={self.text.template!r}: expected a string that holds {{text}} once",
        )
        problems.check(
            not (self.objective.gamma != 0 and self.ffw_scope == "fusion" and self.r == 0),
            "objective.gamma > 0 trains nothing with ffw_scope='fusion' and no LM LoRA: the text never leaves the "
            "frozen LM; set gamma to 0, ffw_scope to 'joint' or r above 0",
        )
        problems.check(
            self.base_quantization in (None, "none", "nf4", "fp4", "int8"),
            f"base_quantization={self.base_quantization!r}: expected 'none', 'nf4', 'fp4' or 'int8'",
        )
        problems.messages.extend(fingerprint_problems(self.base_fingerprint))
        for name, kind in _FACTS.items():
            value = getattr(self, name)
            problems.check(value is None or isinstance(value, kind), f"{name}={value!r}: expected a {kind.__name__}")
        problems.check(
            isinstance(self.dequantize_copy, bool), f"dequantize_copy={self.dequantize_copy!r}: expected true or false"
        )
        version = self.schema_version
        problems.check(
            isinstance(version, int) and version <= SCHEMA_VERSION,
            f"schema_version={version!r}: this package reads up to {SCHEMA_VERSION}; upgrade deepmlf_llm",
        )

    def _check_modalities(self, problems: Problems) -> None:
        reserved = {"input_ids", "attention_mask", "labels", "inputs_embeds", "text", "id", "label", "polarity"}
        for name, modality in self.modalities.items():
            problems.check(
                name.isidentifier() and name not in reserved and not name.endswith("_mask"),
                f"modalities: {name!r} cannot name a modality (an identifier, not a word of the batch)",
            )
            problems.check(
                isinstance(modality.dim, int) and modality.dim >= 1,
                f"modalities.{name}.dim={modality.dim!r}: expected an integer >= 1, the width of one frame",
            )
            rate = modality.frame_rate
            problems.check(
                rate is None or (is_number(rate) and rate > 0),
                f"modalities.{name}.frame_rate={rate!r}: expected a number > 0",
            )
            problems.check(
                isinstance(modality.features, dict),
                f"modalities.{name}.features={modality.features!r}: expected a mapping",
            )
            problems.messages.extend(standardisation_problems(name, modality.standardisation, modality.dim))
        width, heads = self.av_encoder.width, self.av_encoder.num_heads
        if isinstance(width, int) and isinstance(heads, int) and heads > 0:
            problems.check(width % heads == 0, f"av_encoder.width={width} is no multiple of num_heads={heads}")
            problems.check(width % 2 == 0, f"av_encoder.width={width}: positions need an even width")

    @classmethod
    def check_kwargs(cls, **kwargs: Any) -> dict[str, Any]:
        """Strict where PEFT warns: an unknown key that says anything is refused, by name.

        One without a value is let through: another version of PEFT may have written it into an adapter's file.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = {key: value for key, value in kwargs.items() if key not in known}
        # Fields of another PEFT version that are at rest (null, false, empty) change nothing.
        problems = Problems(ConfigError, "DeepMLFConfig")
        for key, value in unknown.items():
            problems.check(not value, f"unknown key {key!r}{suggest(key, known)}")
        problems.raise_if_any()
        return super().check_kwargs(**{key: value for key, value in kwargs.items() if key in known})

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """As in PEFT, which has written the weights just before: their hash is noted, so that damage is found."""
        weights = Path(save_directory) / SAFETENSORS_WEIGHTS_NAME
        self.weights_sha256 = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None
        super().save_pretrained(save_directory, **kwargs)
        path = Path(save_directory) / CONFIG_NAME
        path.write_text(sealed(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DeepMLFConfig:
        """From a mapping of these fields.

        Raises:
            ConfigError: unknown keys, each with the nearest known one, or settings out of range.
        """
        return cls(**cls.check_kwargs(**values))

    @classmethod
    def from_yaml(cls, path: str | Path) -> DeepMLFConfig:
        """From a YAML (or JSON) file of these fields.

        Raises:
            ConfigError: no such file, no mapping, or as :meth:`from_dict`; the message names the file.
        """
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ConfigError("expected a mapping of settings")
            return cls.from_dict(values)
        except (OSError, UnicodeDecodeError, yaml.YAMLError, ConfigError) as error:
            raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, default=sorted)


def settings_digest(values: dict[str, Any]) -> str:
    """sha256 of an adapter's settings as JSON, but for where its base is found: that may be edited by hand."""
    told = {key: value for key, value in values.items() if key not in (*_LOCATION, "settings_sha256")}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def sealed(values: dict[str, Any]) -> str:
    """The text of an adapter's config file, its digest included."""
    return json.dumps({**values, "settings_sha256": settings_digest(values)}, indent=2, sort_keys=True) + "\n"


_FACTS = {"package_versions": dict, "weights_sha256": str, "settings_sha256": str}
_LOCATION = ("base_model_name_or_path", "revision")
_MINIMA = {
    "num_fusion_tokens": 1,
    "r": 0,
    "ffw_lora_r": 0,
    "gca_heads": 1,
    "gca_head_width": 1,
    "head_width": 1,
    "num_outputs": 1,
    "av_encoder.width": 2,
    "av_encoder.num_layers": 0,
    "av_encoder.num_heads": 1,
    "av_encoder.ffw_width": 1,
    "av_encoder.max_frames": 1,
    "text.max_tokens": 1,
}
_OPTIONAL = ("gca_heads", "gca_head_width")
_NON_NEGATIVE = (
    "objective.lambda_fusion",
    "objective.lambda_av",
    "objective.lambda_text",
    "objective.gamma",
    "seqaug.embedding_noise",
    "ffw_lora_alpha",
)
_PROBABILITIES = (
    "ffw_lora_dropout",
    "head_dropout",
    "av_encoder.dropout",
    "av_encoder.input_dropout",
    "seqaug.p_apply",
    "seqaug.p_feat",
    "seqaug.av_p_apply",
    "seqaug.av_p_feat",
    "seqaug.embedding_dropout",
)


def _lookup(config: Any, path: str) -> Any:
    for part in path.split("."):
        config = getattr(config, part)
    return config


def _section(problems: Problems, section: type, value: Any, source: str) -> Any:
    """As :func:`build_section`, its error noted among ``problems``; then the defaults stand in for it."""
    try:
        return build_section(section, value, source)
    except ConfigError as error:
        problems.messages.append(str(error))
        return section()


def build_section(section: type, value: Any, source: str) -> Any:
    """A dataclass from itself or from a mapping with known keys.

    Raises:
        ConfigError: ``value`` is neither, or has unknown keys (named, with the nearest known one).
    """
    if isinstance(value, section):
        return value
    if not isinstance(value, dict):
        raise ConfigError(f"{source}={value!r}: expected a mapping")
    known = {f.name for f in dataclasses.fields(section)}
    problems = Problems(ConfigError, source)
    for key in (key for key in value if key not in known):
        problems.check(False, f"unknown key {key!r}{suggest(str(key), known)}")
    problems.raise_if_any()
    return section(**value)


PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = DeepMLFConfig  # open to out-of-tree methods by name
