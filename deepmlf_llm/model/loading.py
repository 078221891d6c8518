"""The base model under an adapter: the one that is given, or the one it names; checked before anything is put on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from deepmlf_llm.adapters import files
from deepmlf_llm.adapters.compatibility import (
    as_deep_as_trained,
    base_and_revision,
    check_fit,
    trained_dtype,
    trained_kind,
)
from deepmlf_llm.backbones import load_base_model
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.errors import AdapterError, InjectionError


def base_for(
    config: DeepMLFConfig,
    tensors: Mapping[str, Tensor],
    directory: str | Path,
    base: nn.Module | str | Path | None,
    quantization: str,
    dtype: str,
    attn_implementation: str,
) -> Any:
    """The base model that an adapter goes on. From here on its settings name that one.

    Args:
        config, tensors, directory: the adapter's settings and weights, and where they are.
        base, quantization, dtype, attn_implementation: as for
            :meth:`~deepmlf_llm.model.peft_model.DeepMLFModel.from_pretrained`.

    Raises:
        AdapterError: the base is wrapped already, is another one, or does not take these weights.
        BaseModelError: it cannot be found, or not be loaded so.
    """
    lm: Any = base
    if base is None or isinstance(base, (str, Path)):
        name = None if base is None else str(base)
        check_fit(config, tensors, None, directory, name)
        lm = load_base_for(config, directory, quantization, dtype, attn_implementation, name)
        files.check_base(config, lm, directory)
    else:
        try:
            refuse_wrapped(base)
        except InjectionError as error:
            raise AdapterError(f"{directory}: {error}") from error
        check_fit(config, tensors, base, directory)
    used = getattr(lm, "name_or_path", None)
    if used and used != config.base_model_name_or_path:  # what is saved from here names the base that it is on
        config.base_model_name_or_path, config.base_model_relative, config.revision = used, None, None
    return lm


def refuse_wrapped(base: Any) -> None:
    """A base must be the bare causal LM: PEFT's layers inside it would be taken for its own.

    Raises:
        InjectionError: it carries a PEFT adapter, or layers of one.
    """
    if (
        isinstance(base, PeftModel)
        or hasattr(base, "peft_config")
        or (isinstance(base, nn.Module) and any(isinstance(module, BaseTunerLayer) for module in base.modules()))
    ):
        raise InjectionError(
            "the base model carries a PEFT adapter already; give the bare causal LM, and ask for LoRA on it with "
            "DeepMLFConfig(r=...)"
        )


def load_base_for(
    config: DeepMLFConfig,
    source: str | Path,
    quantization: str = "trained",
    dtype: str = "auto",
    attn_implementation: str = "auto",
    name: str | None = None,
) -> Any:
    """The base model that an adapter names, or another, with as many layers as it had in training.

    Args:
        config: of the adapter.
        source: directory of the adapter.
        quantization, dtype, attn_implementation: as for
            :meth:`~deepmlf_llm.model.peft_model.DeepMLFModel.from_pretrained`.
        name: of another base than the one it names.

    Raises:
        AdapterError: the adapter names none.
        BaseModelError: it cannot be found, or not be loaded so.
    """
    base, revision = base_and_revision(config, source, name)
    kind = trained_kind(config, quantization)
    dtype = trained_dtype(config, dtype)
    lm = load_base_model(base, kind, dtype, attn_implementation, revision, init_seed=config.base_init_seed)
    return as_deep_as_trained(lm, config)
