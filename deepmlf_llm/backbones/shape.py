"""A base model's shape without its weights: on the meta device, nothing loaded, nothing downloaded but its config."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from deepmlf_llm.backbones.families import find_interface
from deepmlf_llm.backbones.foreign_code import NO_CODE, check_no_code
from deepmlf_llm.backbones.loading import base_source, cut_layers
from deepmlf_llm.backbones.toys import TOYS, toy_model
from deepmlf_llm.errors import BaseModelError


def base_model_shape(name: str, num_layers: int | None = None, revision: str | None = None) -> Any:
    """The decoder that ``load_base_model`` would load unquantized, frozen, its parameters on the meta device.

    Args:
        name, num_layers, revision: as for :func:`~deepmlf_llm.backbones.loading.load_base_model`.

    Raises:
        BaseModelError: not there, not a causal decoder of a known family, or with fewer layers.
    """
    if name in TOYS:
        with torch.device("meta"):
            lm = toy_model(name)
    else:
        lm = _from_config(name, revision)
    find_interface(lm)
    if num_layers is not None:
        cut_layers(lm, num_layers)
    return lm.eval().requires_grad_(False)


def shape_of(lm: Any) -> Any:
    """The shape of a model that is loaded: what its class makes of its config, unquantized, on the meta device.

    None where its class cannot be made from a config alone.
    """
    config = copy.deepcopy(lm.config)
    config._attn_implementation = "eager"  # shapes do not depend on it, and this one is always there
    try:
        with torch.device("meta"):
            return type(lm)(config).eval().requires_grad_(False)
    except (AttributeError, ImportError, RuntimeError, TypeError, ValueError):
        return None


def _from_config(name: str, revision: str | None) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    source = base_source(name)  # the first time it loads weights of a GGUF file, to convert them
    check_no_code(source, revision, name)
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, **NO_CODE)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, **NO_CODE)
    except Exception as error:  # whatever a config from elsewhere makes it raise
        reason = " ".join(str(error).split())
        where = "not there, neither as a directory nor as a hub id that can be reached from here"
        if Path(source).is_dir():
            where = "its config.json is that of no causal LM here"
        raise BaseModelError(f"base_model={name!r}: {where}: {reason[:200] or type(error).__name__}") from error
