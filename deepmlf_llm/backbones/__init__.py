"""Decoders: where a family keeps its parts, how to load one, how to run it in parts. Nothing here knows of fusion."""

from deepmlf_llm.deferred import import_transformers

import_transformers()  # before anything else does

from deepmlf_llm.backbones.families import FAMILIES, DecoderInterface, register_family  # noqa: E402
from deepmlf_llm.backbones.fingerprint import base_fingerprint, compare_fingerprints  # noqa: E402
from deepmlf_llm.backbones.interface import Decoder  # noqa: E402
from deepmlf_llm.backbones.loading import cpu_or_cuda_dtype, load_base_model, load_tokenizer  # noqa: E402
from deepmlf_llm.backbones.masking import check_maskable  # noqa: E402
from deepmlf_llm.backbones.packing import PACKING, PackedRows  # noqa: E402
from deepmlf_llm.backbones.quantization import QUANTIZATIONS, is_quantized, keep_weights_in_place, quantization_of  # noqa: E402
from deepmlf_llm.backbones.random_base import init_seed_of  # noqa: E402
from deepmlf_llm.backbones.state import BaseState  # noqa: E402
from deepmlf_llm.backbones.stream import PrefixCache, TextStream, positions, read_text, run_layers, run_packed  # noqa: E402

__all__ = [
    "FAMILIES",
    "PACKING",
    "QUANTIZATIONS",
    "BaseState",
    "Decoder",
    "DecoderInterface",
    "PackedRows",
    "PrefixCache",
    "TextStream",
    "base_fingerprint",
    "check_maskable",
    "compare_fingerprints",
    "cpu_or_cuda_dtype",
    "init_seed_of",
    "is_quantized",
    "keep_weights_in_place",
    "load_base_model",
    "load_tokenizer",
    "positions",
    "quantization_of",
    "read_text",
    "register_family",
    "run_layers",
    "run_packed",
]
