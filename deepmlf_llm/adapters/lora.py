"""LoRA on the language model alone, in PEFT's own format: plain PEFT loads it, with no DeepMLF anywhere."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch import Tensor

from deepmlf_llm.adapters.base_location import NAME, location_of
from deepmlf_llm.adapters.files import CONFIG, WEIGHTS, read_config
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.errors import AdapterError

DIRECTORY = "lora"
_PREFIX = "base_model.model."  # PEFT's keys of what sits in the LM; DeepMLF's own modules are beside it


def lm_lora_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of an adapter's tensors that belong to LoRA on the LM, by the keys of the file."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)}


def adapted_modules(names: Iterable[str]) -> list[str]:
    """The LM's modules that LoRA adapts, exactly, from the keys of an adapter's file.

    >>> adapted_modules(["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", "base_model.deepmlf.x"])
    ['model.layers.0.mlp.up_proj']
    """
    return sorted({name[len(_PREFIX) :].rpartition(".lora_")[0] for name in names if name.startswith(_PREFIX)})


def write_lm_lora(directory: Path, config: DeepMLFConfig, tensors: Mapping[str, Tensor]) -> None:
    """Writes ``directory/lora/``, a LoRA adapter of plain PEFT that adapts exactly the modules it was trained on.

    Args:
        directory: of the DeepMLF adapter.
        config: of it.
        tensors: of it, by the keys of its file.
    """
    from safetensors.torch import save_file

    own = lm_lora_tensors(tensors)
    target = directory / DIRECTORY
    target.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in own.items()}, target / WEIGHTS, {"format": "pt"})
    values: dict[str, Any] = {
        field.name: getattr(config, field.name) for field in dataclasses.fields(LoraConfig) if field.init
    }
    values |= {"peft_type": "LORA", "inference_mode": True, "target_modules": adapted_modules(own)}
    values |= {NAME: location_of(config.base_model_name_or_path, directory)[NAME]}
    plain = LoraConfig(**values).to_dict()
    text = json.dumps({k: sorted(v) if isinstance(v, set) else v for k, v in plain.items()}, indent=2, sort_keys=True)
    (target / CONFIG).write_text(text + "\n")


def remove_lm_lora(directory: Path) -> None:
    """Removes what :func:`write_lm_lora` wrote beside the adapter that lies in ``directory``. Without such an adapter
    ``lora/`` is not ours, and whatever else lies in it stays."""
    try:
        if not read_config(directory).has_lm_lora:
            return
    except AdapterError:
        return
    place = directory / DIRECTORY
    for name in (CONFIG, WEIGHTS):
        (place / name).unlink(missing_ok=True)
    with suppress(OSError):  # not empty, or gone
        place.rmdir()
