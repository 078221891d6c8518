"""Settings of a baseline: what it shares with a run goes by the same name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from deepmlf_llm.config.rules import choice, integer, number, optional, rule_problems, setting, share, word, words
from deepmlf_llm.config.sections import LONGEST, TEXT_PLACE, TextConfig
from deepmlf_llm.errors import ConfigError, Problems
from deepmlf_llm.training.run_keys import AUTO, EMBEDDED
from deepmlf_llm.training.settings import RunSettings

KINDS = {
    "constant": "the median of the training labels, whatever is said",
    "ridge": "ridge regression on the frozen LM's states; layer and pooling chosen on validation",
    "lora_text": "LoRA on the LM and a regression head on its last token: the text alone, fine-tuned",
    "bam": "an MLP on pooled audio and vision, added to the frozen LM's pooled text state",
}
_READS_TEXT = ("ridge", "lora_text", "bam")
_LEARNING_RATES = {"lora_text": 2e-4, "bam": 1e-3}


@dataclass(frozen=True)
class BaselineSettings:
    """One baseline.

    Raises:
        ConfigError: a setting is out of range; the message names all that are.
    """

    kind: str = setting(f"one of {', '.join(KINDS)}", choice(*KINDS))
    data: str = setting("data directory made by `deepmlf prepare`, or embedded", word("a directory"), EMBEDDED)
    data_fraction: float = setting("share of the training split to use, in (0, 1]", number(0, 1, above=True), 1.0)
    output_dir: str | None = setting(
        "run directory, must not exist yet; default: runs/baseline-KIND-seed-N", optional(word("a directory")), None
    )
    base_model: str = setting("as in train", word("the name of a model"), AUTO)
    revision: str | None = setting("revision of a hub model", optional(word()), None)
    num_layers: int | None = setting(
        "keep only the first layers of the base model", optional(integer(1, 100_000)), None
    )
    quantization: str = setting("of the base: none, nf4, fp4, int8", choice("none", "nf4", "fp4", "int8"), "none")
    dtype: str = setting("of the base: auto, float32, bfloat16", choice(AUTO, "float32", "bfloat16", "float16"), AUTO)
    template: str = setting("what the LM reads, with {text} for the transcript", None, TEXT_PLACE)
    max_tokens: int = setting("longer transcripts are cut", integer(1, LONGEST), 50)
    modalities: list[str] | None = setting(
        "bam: which of the data's modalities; default: all", optional(words("a list of modalities")), None
    )
    seed: int = setting("of initialisation, order and dropout", integer(0, 1 << 31), 42)
    num_train_epochs: int = setting("epochs, at most", integer(1, 100_000), 30)
    early_stopping_patience: int = setting(
        "epochs without a better validation MAE before the end", integer(1, 10_000), 5
    )
    batch_size: int = setting("utterances a step", integer(1, 1 << 16), 32)
    learning_rate: float | None = setting(
        "default: 2e-4 for lora_text, 1e-3 for bam", optional(number(0, 1e3, above=True)), None
    )
    weight_decay: float = setting("of matrices and vectors alike", number(0, 1e3), 1e-2)
    lora_r: int = setting("lora_text: rank", integer(1, 1 << 14), 8)
    lora_alpha: int = setting("lora_text: scale is alpha / rank", integer(1, 1 << 16), 16)
    lora_dropout: float = setting("lora_text: dropout before LoRA", share(), 0.05)
    modality_dropout: float = setting("bam: share of modalities left out in training", share(), 0.3)
    hidden: int = setting("bam: width of the MLP", integer(1, 1 << 16), 128)

    def __post_init__(self) -> None:
        problems = Problems(ConfigError, "settings")
        problems.messages.extend(rule_problems(self))
        problems.raise_if_any()
        self.text("keep")

    @property
    def reads_text(self) -> bool:
        """Whether it needs a base model."""
        return self.kind in _READS_TEXT

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self.learning_rate or _LEARNING_RATES.get(self.kind, 1e-3)

    def text(self, case: str) -> TextConfig:
        """How transcripts become tokens.

        Raises:
            ConfigError: the template does not hold ``{text}`` once.
        """
        found = TextConfig(case, self.max_tokens, self.template)
        problems = Problems(ConfigError, "settings")
        problems.messages.extend(rule_problems(found))
        problems.raise_if_any()
        return found

    def as_run(self) -> RunSettings:
        """The settings that decide which data and which base are loaded, as a run has them."""
        names = ("data", "data_fraction", "base_model", "revision", "num_layers", "quantization", "dtype", "modalities")
        values: Mapping[str, Any] = {name: getattr(self, name) for name in names}
        return RunSettings.from_dict({name: value for name, value in values.items() if value is not None})

    def to_dict(self) -> dict[str, Any]:
        """For ``result.json``."""
        return asdict(self)
