"""Which keys of a run say something of the AV encoder alone; the others are refused by name."""

from __future__ import annotations

from typing import Any

from deepmlf_llm.errors import ConfigError, Problems
from deepmlf_llm.training.keys import all_keys
from deepmlf_llm.training.settings import RunSettings, flatten

_OF_THE_RUN = {
    "av_readout",
    "batch_size",
    "data",
    "data_fraction",
    "early_stopping_patience",
    "frame_dropout",
    "mask_seed",
    "missing",
    "modalities",
    "modality_dropout",
    "output_dir",
    "warmup_epochs",
}
_OF_THE_METHOD = {"objective.loss", "seqaug.av_p_apply", "seqaug.av_p_feat"}
_NOT_OFFERED = {"average_last", "cmixup_alpha", "cmixup_bandwidth", "cmixup_labels", "ema_decay"}
_CALLED_HERE = {"av_learning_rate": "learning_rate", "av_weight_decay": "weight_decay"}
_OF_AN_LM = {"gradient_checkpointing", "gradient_checkpointing_kwargs", "torch_compile"}


def says_something(name: str) -> bool:
    """Whether the key ``name`` changes what an AV encoder is trained to alone."""
    key = all_keys()[name]
    if key.owner == "run":
        return name in _OF_THE_RUN
    if key.owner == "method":
        return name.startswith("av_encoder.") or name in _OF_THE_METHOD
    return name not in _OF_AN_LM


def check_av_settings(settings: RunSettings) -> None:
    """Whether all that is set has a meaning here.

    Raises:
        ConfigError: keys of the language model or of fusion that differ from their defaults; all of them.
    """
    problems = Problems(ConfigError, "pretrain-av")
    problems.check(
        settings.deepspeed is None,
        f"deepspeed={settings.deepspeed!r}: the AV encoder is small; start it with python or torchrun",
    )
    for name, value in flatten(settings.to_dict()).items():
        if name == "deepspeed" or name not in all_keys() or says_something(name):
            continue
        if value != _default(name):
            problems.check(False, f"{name}={value!r} {_why_not(name)}")
    problems.raise_if_any()


def _why_not(name: str) -> str:
    if name in _CALLED_HERE:
        return f"sets the AV encoder apart from the rest: nothing else is trained here; use {_CALLED_HERE[name]}"
    if name in _NOT_OFFERED:
        return "is a setting of `deepmlf train` that `deepmlf pretrain-av` does not offer; leave it out"
    return "is a setting of `deepmlf train`: there is no language model here"


def _default(name: str) -> Any:
    return all_keys()[name].default
