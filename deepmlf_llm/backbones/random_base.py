"""A base model as its config has it, with random weights: what the LM has learned is then gone, its shape is not.

DeepMLF's study of the fusion curriculum crosses pretrained and random LMs (arXiv 2504.11082). The weights come from a
seed, so an adapter on such a base can have it made again; they are drawn on the CPU in fp32, whatever dtype is wanted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from deepmlf_llm.backbones.foreign_code import NO_CODE, check_no_code
from deepmlf_llm.backbones.quantization import keep_weights_in_place, quantization_config
from deepmlf_llm.backbones.toys import TOYS, toy_model
from deepmlf_llm.errors import BaseModelError

_SEED = "_deepmlf_init_seed"


def random_base(source: str, name: str, seed: int, revision: str | None = None, kernel: str | None = None) -> Any:
    """A causal LM with random weights in fp32; other random numbers of this process stay as they were.

    Args:
        source: where its config is: a directory or hub id; of a toy its name.
        name: what the user calls it.
        seed: of the weights.
        revision: of a hub model.
        kernel: what attention is asked of transformers; None lets it choose.

    Raises:
        BaseModelError: no config there, or that of no causal LM.
    """
    if name in TOYS:
        lm = toy_model(name, seed)
        if kernel is not None:
            lm.set_attn_implementation(kernel)
    else:
        lm = _from_config(source, name, seed, revision, kernel)
    setattr(lm, _SEED, seed)
    return lm


def init_seed_of(lm: nn.Module) -> int | None:
    """Seed of a base that :func:`random_base` has made; None for any other."""
    seed: int | None = getattr(lm, _SEED, None)
    return seed


@torch.no_grad()
def random_weights(shape: Any, kind: str, device: str) -> Any:
    """Gives a decoder without weights random ones, made part by part on ``device``: never whole in a wider dtype.

    Args:
        shape: LLaMA, or a family built alike, on the meta device; it is changed.
        kind: ``"nf4"`` (projections of the layers; the rest bf16) or a dtype, ``"bfloat16"`` or ``"float32"``.
    """
    dtype = torch.bfloat16 if kind == "nf4" else getattr(torch, kind)
    for module in list(shape.modules()):
        if _is_packed_as(module, kind, shape):
            continue  # the module above has put a packed one in its place
        for name, parameter in list(module.named_parameters(recurse=False)):
            values = torch.empty(parameter.shape, dtype=dtype, device=device)
            # Vectors are weights of norms, and biases.
            values = values.fill_(float(name != "bias")) if values.dim() == 1 else values.normal_(std=0.02)
            setattr(module, name, nn.Parameter(values, requires_grad=False))
        for name, child in list(module.named_children()):
            if _is_packed_as(child, kind, shape):
                setattr(module, name, random_nf4_linear(child.in_features, child.out_features, dtype, device))
    shape.tie_weights()
    # Rotary tables are no parameters.
    shape.model.rotary_emb = type(shape.model.rotary_emb)(config=shape.config).to(device)
    shape.config.dtype = dtype
    if kind == "nf4":
        shape.config.quantization_config = quantization_config("nf4", dtype)
        keep_weights_in_place(shape)
    return shape.eval().requires_grad_(False)


def _is_packed_as(module: Any, kind: str, lm: Any) -> bool:
    return kind == "nf4" and isinstance(module, nn.Linear) and module is not lm.get_output_embeddings()


def random_nf4_linear(width: int, out: int, dtype: torch.dtype, device: str) -> Any:
    """A layer of bitsandbytes with 4-bit weights that computes in ``dtype``, without a bias."""
    import bitsandbytes as bnb

    packed = bnb.nn.Linear4bit(width, out, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta")
    values = torch.empty(out, width, dtype=dtype, device=device).normal_(std=0.02)
    packed.weight = bnb.nn.Params4bit(values, requires_grad=False, quant_type="nf4", module=packed).to(device)
    return packed


def _from_config(source: str, name: str, seed: int, revision: str | None, kernel: str | None) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    check_no_code(source, revision, name)
    options = {} if kernel is None else {"attn_implementation": kernel}
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, **NO_CODE)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32, **options, **NO_CODE)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a config from elsewhere makes it raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise BaseModelError(f"base_model={name!r}: no model can be made of its config: {reason}") from error
