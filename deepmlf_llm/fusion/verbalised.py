"""The tokens with which a language model says a polarity: one for each step of the scale, chosen for its tokenizer."""

from __future__ import annotations

import copy
from typing import Any

from deepmlf_llm.backbones.vocabulary import single_token_ids
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.config.readout import scale_steps


def with_token_ids(config: DeepMLFConfig, tokenizer: Any) -> DeepMLFConfig:
    """A copy of ``config`` that says its steps and their token ids, where its readout is verbalised.

    Ids that are there stay: they are those of the adapter's training.

    Args:
        config: of an adapter to be made.
        tokenizer: of its base.

    Raises:
        ConfigError: as :func:`~deepmlf_llm.backbones.vocabulary.single_token_ids`.
    """
    if config.readout == "heads" or config.verbalised_ids is not None:
        return config
    config = copy.deepcopy(config)
    config.verbalised_steps = scale_steps(config)
    config.verbalised_ids = single_token_ids(tokenizer, config.verbalised_steps)
    return config
