"""The run's own settings: name, type, rule, default and help of each.

Apart from ``settings.py``, which needs the list of all keys, so that the list can be made from these.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepmlf_llm.config.rules import (
    Rule,
    choice,
    flag,
    integer,
    is_number,
    number,
    optional,
    setting,
    share,
    word,
    words,
)
from deepmlf_llm.data.corruption import one_level_each

LOGS = {"jsonl", "tensorboard", "wandb"}
TEXT_CACHES = ("none", "memory", "disk")
EMBEDDED = "embedded"
AUTO = "auto"
TEXT_ALONE = ["none"]
"""What ``modalities`` holds where none is read."""

_SHARE = Rule(lambda value: is_number(value) and 0 < value <= 1, "a share in (0, 1]")
_NAMES = words("a list of modalities")
_MODALITIES = optional(
    Rule(
        lambda value: (
            _NAMES.good(value)
            and 0 < len(value) == len(set(value))  # nothing at all is a variable of a script that was not set
            and (value == TEXT_ALONE or "none" not in value)
        ),
        "a list of modalities, none of them twice, or the word none alone",
    )
)
_MISSING = optional(
    Rule(
        lambda value: _NAMES.good(value) and len(value) > 0 and one_level_each(value),
        "a list of modality=share, shares 0 to 1, none twice",
    )
)
_LOG_TO = optional(
    Rule(
        lambda value: _NAMES.good(value) and set() < set(value) <= LOGS,
        "a list of jsonl, tensorboard, wandb",
    )
)
_RATE = optional(number(0, 1e3))
_KERNELS = ("auto", "sdpa", "eager", "prefix", "varlen", "flash_attention_2", "flash_attention_3", "flex_attention")


@dataclass
class RunKeys:
    """What a run decides beside the method and transformers' ``TrainingArguments``."""

    base_model: str = setting(
        "hub id, directory, GGUF file, smollm2-135m, tiny-llama, tiny-mistral, tiny-gpt2, or auto",
        word("the name of a model"),
        AUTO,
    )
    revision: str | None = setting("revision of a hub model", optional(word()), None)
    num_layers: int | None = setting(
        "keep only the first layers of the base model", optional(integer(1, 100_000)), None
    )
    quantization: str = setting(
        "of the frozen base: none, nf4, fp4 or int8 (bitsandbytes)", choice("none", "nf4", "fp4", "int8"), "none"
    )
    dtype: str = setting(
        "of the frozen base: auto (bf16 on CUDA and on CPUs that compute it natively, else fp32), float32 or bfloat16",
        choice(AUTO, "float32", "bfloat16", "float16"),
        AUTO,
    )
    attn_implementation: str = setting("auto, sdpa, eager, prefix, varlen, ..", choice(*_KERNELS), AUTO)
    data: str = setting("data directory made by `deepmlf prepare`, or embedded", word("a directory"), EMBEDDED)
    modalities: list[str] | None = setting(
        "which of the data's modalities to use, or none: text alone, without AV encoder and GCA; default: all of them",
        _MODALITIES,
        None,
    )
    data_fraction: float = setting("share of the training split to use, in (0, 1]", _SHARE, 1.0)
    missing: list[str] | None = setting(
        "train with modalities taken away: share of the training utterances without each, as audio=0.5,vision=0.2",
        _MISSING,
        None,
    )
    mask_seed: int = setting("which of them: the same for every seed of the run", integer(0, 1 << 31), 0)
    output_dir: str | None = setting(
        "run directory; default: one under runs/ named after the settings", optional(word("a directory")), None
    )
    init_from: str | None = setting(
        "adapter whose weights the run begins with: its directory, its run, or a hub id; all else as configured",
        optional(word("an adapter")),
        None,
    )
    av_encoder_from: str | None = setting(
        "AV encoder to begin with: a run of `deepmlf pretrain-av`, or the directory it saved; default: a random one",
        optional(word("a directory")),
        None,
    )
    av_readout: str = setting(
        "what `deepmlf pretrain-av` reads the polarity from: mean or last frame of Z", choice("mean", "last"), "mean"
    )
    lm_init: str = setting(
        "weights of the base: pretrained, or random (its config's shape; drawn from seed)",
        choice("pretrained", "random"),
        "pretrained",
    )
    deepspeed: str | None = setting(
        "DeepSpeed configuration (also --ds): a file, or a shipped one such as zero2", optional(word("a file")), None
    )
    text_cache: str = setting("keep the frozen text stream: none, memory or disk", choice(*TEXT_CACHES), "none")
    text_cache_dtype: str | None = setting(
        "of the kept text stream: float32, bfloat16, float16 or int8; default: as computed; with bfloat16 and int8 an "
        "fp32 LM reads in bf16 where the CPU computes that natively",
        optional(choice("float32", "bfloat16", "float16", "int8")),
        None,
    )
    batch_size: int = setting("utterances a step, over all processes and accumulated batches", integer(1, 1 << 24), 32)
    group_by_length: bool = setting("put texts of similar length into one batch", flag(), True)
    modality_dropout: float = setting(
        "probability that a modality of an utterance is absent in training, for each of its modalities apart",
        share(),
        0.0,
    )
    frame_dropout: float = setting(
        "share of a modality's real frames that are left out in training; at least one of each stays", share(), 0.0
    )
    cmixup_alpha: float = setting(
        "C-Mixup in training: audio and vision blended with those of a near label; of Beta(alpha, alpha), 0 = never",
        number(0, 1e3),
        0.0,
    )
    cmixup_bandwidth: float = setting(
        "how near: standard deviation of its kernel, in units of the label", number(0, 1e6, above=True), 0.5
    )
    cmixup_labels: str = setting(
        "heads that learn the blended label: keep (none), av, or all (but text, which is not blended)",
        choice("keep", "av", "all"),
        "av",
    )
    ema_decay: float = setting(
        "of a moving average (EMA) of the trained weights, taken at the end if better on validation; 0 = none",
        share(),
        0.0,
    )
    average_last: int = setting(
        "last evaluations whose weights are averaged; taken at the end if better on validation; 0 = none",
        integer(0, 1000),
        0,
    )
    save_every: float | None = setting(
        "minutes between checkpoints, beside those of save_strategy; default: none",
        optional(number(0, 1e6, above=True)),
        None,
    )
    log_to: list[str] | None = setting(
        "where the log goes: jsonl (metrics.jsonl, always written), tensorboard, wandb; default: tensorboard where "
        "installed",
        _LOG_TO,
        None,
    )
    max_skipped_steps: int = setting(
        "steps whose loss or gradient is not finite that are left out; the one after them ends the run",
        integer(0, 1 << 31),
        0,
    )
    warmup_epochs: float = setting("epochs of linear warm-up", number(0, 1e6), 1.0)
    av_learning_rate: float | None = setting("of the AV encoder; default: learning_rate", _RATE, None)
    lora_learning_rate: float | None = setting("of LoRA on the LM; default: learning_rate", _RATE, None)
    av_weight_decay: float | None = setting("of the AV encoder; default: weight_decay", _RATE, None)
    early_stopping_patience: int = setting(
        "evaluations without improvement before the run ends; 0 = never", integer(0, 1 << 31), 10
    )
