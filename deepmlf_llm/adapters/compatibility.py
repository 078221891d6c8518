"""Whether an adapter's files fit a base model, decided from shapes alone, before anything is built or loaded.

The adapter is built once on the meta device, on the shape of its base: whatever sizes a damaged config asks for cost
neither time nor memory, and a base that is at hand is not touched.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModelForCausalLM, get_peft_model_state_dict
from torch import Tensor, nn
from transformers.integrations import is_deepspeed_zero3_enabled

from deepmlf_llm.adapters import files
from deepmlf_llm.adapters.base_location import find_base, not_found
from deepmlf_llm.backbones.loading import cut_layers
from deepmlf_llm.backbones.shape import base_model_shape, shape_of
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.config.method_settings import MethodSettings
from deepmlf_llm.config.rules import brief
from deepmlf_llm.errors import AdapterError, BaseModelError


def check_fit(
    config: DeepMLFConfig, tensors: Mapping[str, Tensor], base: Any, source: str | Path, name: str | None = None
) -> None:
    """Settings and tensors of an adapter fit its base, which is given, or (None) only named.

    Args:
        config: of the adapter.
        tensors: of it, by the keys of its file.
        base: the base model, or None.
        source: directory of the adapter.
        name: of another base than the one it names, with ``base=None``.

    Raises:
        AdapterError: another base, settings that do not fit it, tensors that do not fit them; by name.
    """
    if base is not None:  # whose weights say more than a shape
        files.check_base(config, base, source)
    shape = shape_for(config, source, name) if base is None else shape_of(base)
    if shape is not None:

        def build() -> dict[str, Tensor]:
            return adapter_tensors(PeftModelForCausalLM(shape, copy.deepcopy(config)), "default")

        files.check_fit(config, tensors, shape, source, build)


_OF_LM_LORA = (
    "lora_alpha",
    "target_modules",
    "exclude_modules",
    "use_rslora",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
)


def other_settings(one: DeepMLFConfig, other: DeepMLFConfig) -> list[str]:
    """Settings of the method, and of LoRA on the LM, that differ: each with both values."""
    names = [*MethodSettings.__annotations__, *(_OF_LM_LORA if one.has_lm_lora and other.has_lm_lora else ())]
    found = []
    for name in names:
        values = [_plain(getattr(config, name)) for config in (one, other)]
        if values[0] != values[1]:
            found.append(f"{name}={brief(values[0])} (there {brief(values[1])})")
    return found


def _plain(value: Any) -> Any:
    """A setting as it is compared: where features came from is not."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {k: v for k, v in dataclasses.asdict(value).items() if k != "provenance"}
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return sorted(value) if isinstance(value, set) else list(value) if isinstance(value, tuple) else value


def adapter_tensors(model: Any, name: str) -> dict[str, Tensor]:
    """What an adapter's file holds, by the file's keys: the parameters themselves, which under ZeRO-3 know their whole
    shape."""
    found: dict[str, Tensor] = get_peft_model_state_dict(
        model, state_dict=live_tensors(model), adapter_name=name, save_embedding_layers=False
    )
    return found


def live_tensors(model: nn.Module) -> dict[str, Tensor]:
    """``model.state_dict(keep_vars=True)`` by its keys and in its order, without what modules make for it at each call:
    4-bit layers pack their quantization state, all of a base's for an adapter that needs none of it."""
    return {
        f"{prefix}.{name}" if prefix else name: tensor
        for prefix, module in model.named_modules(remove_duplicate=False)
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None and name not in module._non_persistent_buffers_set
    }


def base_and_revision(config: DeepMLFConfig, source: str | Path, name: str | None = None) -> tuple[str, str | None]:
    """The base to load for an adapter: the one called ``name``, or the one that the adapter names.

    Raises:
        AdapterError: it names none, or a path where nothing is.
    """
    if name is None:
        return find_base(config, source), config.revision
    return name, config.revision if name == config.base_model_name_or_path else None


def shape_for(config: DeepMLFConfig, source: str | Path, name: str | None = None) -> Any:
    """The shape of the base that an adapter names, or of another; nothing of it is loaded but its config.

    Raises:
        AdapterError: it names none, or none that is here.
    """
    if is_deepspeed_zero3_enabled():  # transformers would split what it makes, which a shape cannot be
        return None
    base, revision = base_and_revision(config, source, name)
    try:
        return as_deep_as_trained(base_model_shape(base, revision=revision), config)
    except BaseModelError as error:
        raise (AdapterError(f"{source}: {error}") if name else not_found(source, error)) from error


def trained_kind(config: DeepMLFConfig, quantization: str) -> str:
    """``quantization`` of a base to load, ``"trained"`` resolved: what the adapter was trained on."""
    return (config.base_quantization or "none") if quantization == "trained" else quantization


def trained_dtype(config: DeepMLFConfig, dtype: str) -> str:
    """``dtype`` of a base to load, ``"auto"`` resolved on a CPU: fp32 for an adapter that was trained on an fp32 base,
    or before that was recorded, so that it predicts what it did in training; else what suits the CPU."""
    trained_on = (config.base_fingerprint or {}).get("stored")
    if dtype != "auto" or torch.cuda.is_available() or trained_on in ("bfloat16", "float16"):
        return dtype
    return "float32"


def as_deep_as_trained(lm: Any, config: DeepMLFConfig) -> Any:
    """``lm`` with the first layers only, where the adapter was trained on so many."""
    layers = (config.base_fingerprint or {}).get("layers", 0)
    if 0 < layers < lm.config.get_text_config().num_hidden_layers:
        cut_layers(lm, layers)
    return lm
