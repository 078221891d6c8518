"""What identifies a base model, whatever dtype or quantization it is loaded in.

Version 1 hashes a sample of embedding rows. Version 2 adds every tensor: their names and shapes, a hash of a sample of
each (the same in fp32 and bf16), and a sketch of each that is compared with a tolerance, for fp16, 4 and 8 bits.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepmlf_llm.backbones.quantization import dequantized_weight, is_bitsandbytes, quantization_of

VERSION = 2
SAMPLED_ROWS = 64
SAMPLED_ELEMENTS = 256
_SUMS = 8  # of a tensor's sample, with signs, in its sketch
_STEP = 32  # of a sum, in parts of the sample's root mean square
_ENTRY = np.dtype([("scale", "<f2"), ("sums", "i1", (_SUMS,))])
# The root mean square over a tensor's sums by which another storage may change them: rounding, or 4-bit noise. Two
# unrelated tensors differ by 1.4.
_TOLERANCE = {"half": 0.06, "quantized": 0.5}
_MIXED = np.arange(SAMPLED_ELEMENTS, dtype=np.uint64) * np.uint64(2654435761) >> np.uint64(13)
_SIGNS = np.where(_MIXED % 2, 1.0, -1.0)
_LORA = re.compile(r"\.(lora_[A-Za-z_]+)\.")


@torch.no_grad()
def base_fingerprint(lm: nn.Module) -> dict[str, Any]:
    """Family and sizes, and what distinguishes the weights: see this module. Costs a sample of each tensor.

    Of a model without weights (meta device) or with shards of them (ZeRO-3): what is known.
    """
    embeddings = lm.get_input_embeddings()  # type: ignore[operator]
    weight = getattr(embeddings, "base_layer", embeddings).weight
    tensors = list(_tensors(lm))
    shapes = _hash(f"{name}{shape}".encode() for name, shape, _ in tensors)
    fingerprint = {**base_sizes(lm), "version": VERSION, "shapes": shapes}
    if weight.device.type == "meta" or not weight.shape[0]:
        return fingerprint
    rows = torch.linspace(0, weight.shape[0] - 1, SAMPLED_ROWS).long().to(weight.device)
    fingerprint["weights"] = _hash([_bytes(weight[rows])])
    samples = torch.stack([_sample(read()) for _, _, read in tensors]).cpu()
    fingerprint["digest"] = _hash([_bytes(samples)])
    fingerprint["sketch"] = base64.b64encode(_sketch(samples.double().numpy()).tobytes()).decode()
    fingerprint["stored"] = str(weight.dtype).removeprefix("torch.")
    fingerprint["quantization"] = quantization_of(lm)
    return fingerprint


def base_sizes(lm: nn.Module) -> dict[str, Any]:
    """Family and sizes, as its config says."""
    config: Any = lm.config.get_text_config()  # type: ignore[operator, union-attr]
    return {
        "family": config.model_type,
        "width": int(config.hidden_size),
        "layers": int(config.num_hidden_layers),
        "vocabulary": int(config.vocab_size),
    }


def _tensors(lm: Any) -> Iterator[tuple[str, list[int], Any]]:
    """(name, shape, how to read it) of each tensor of the base itself: without LoRA, packed weights by what they
    stand for, tied ones once."""
    seen: set[int] = set()
    if getattr(lm.config.get_text_config(), "tie_word_embeddings", False):  # a file may hold the head all the same
        head: Any = lm.get_output_embeddings()
        seen.add(id(getattr(head, "base_layer", head).weight))
        seen.discard(id(getattr(lm.get_input_embeddings(), "weight", None)))
    for path, module in lm.named_modules():
        if _LORA.search(f".{path}."):
            continue
        for own, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{own}".replace(".base_layer.", ".")
            if id(parameter) in seen or _LORA.search(f".{own}."):
                continue
            seen.add(id(parameter))
            if own == "weight" and is_bitsandbytes(module):
                shape = [int(module.out_features), int(module.in_features)]
                if getattr(module, "source_cls", nn.Linear).__name__ == "Conv1D":  # GPT-2's, [in x out] unquantized
                    yield name, shape[::-1], lambda module=module: dequantized_weight(module).T
                else:
                    yield name, shape, lambda module=module: dequantized_weight(module)
            else:
                yield name, list(getattr(parameter, "ds_shape", parameter.shape)), lambda p=parameter: p


def _sample(weight: Tensor) -> Tensor:
    """Values spread over a whole tensor, fp32 [SAMPLED_ELEMENTS]; a small one repeats."""
    flat = weight.detach().reshape(-1)
    if not flat.numel():
        return torch.zeros(SAMPLED_ELEMENTS, device=flat.device)
    # The steps vary, so that no period of rows or heads is met.
    index = (torch.arange(SAMPLED_ELEMENTS) * (flat.numel() - 1)) // (SAMPLED_ELEMENTS - 1)
    return flat[index.to(flat.device)].float()


def _sketch(samples: np.ndarray) -> np.ndarray:
    """[tensors x elements] -> a few bytes a tensor: its root mean square, and sums of parts of it with fixed signs."""
    scale = np.sqrt((samples**2).mean(axis=1))
    parts = (samples * _SIGNS).reshape(len(samples), _SUMS, -1)
    sums = parts.sum(axis=2) / np.sqrt(parts.shape[2]) / np.where(scale > 0, scale, 1.0)[:, None]
    sketch = np.empty(len(samples), _ENTRY)
    sketch["scale"] = np.minimum(scale, 6e4)
    sketch["sums"] = np.clip(np.rint(sums * _STEP), -127, 127)
    return sketch


def _bytes(values: Tensor) -> bytes:
    """Rounded to bf16, in which fp32 and bf16 storage are the same."""
    data: bytes = values.to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes()
    return data


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]


@torch.no_grad()
def weights_digest(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """A hash over a sample of each of these weights as they are loaded: another after any fine-tuning or merge."""
    digest = hashlib.sha256()
    for name, weight in parameters:
        flat = weight.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLED_ELEMENTS)].to("cpu").contiguous()
        digest.update(name.encode() + sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def compare_fingerprints(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What differs, one phrase each; empty where the base is the right one.

    Fingerprints of version 1 are compared by what they hold. An fp16 base is compared by its sketch alone: its values,
    rounded once more, have another hash.
    """
    both = [key for key in expected if key in found]
    compared: list[str] = [key for key in ("family", "width", "layers", "vocabulary", "shapes") if key in both]
    halves = "float16" in (expected.get("stored"), found.get("stored"))
    if "weights" in both and not halves:
        compared.append("weights")
    problems = [
        f"{key}: the adapter was trained on {expected[key]}, this base has {found[key]}"
        for key in compared
        if expected[key] != found[key]
    ]
    if problems or "sketch" not in both:
        return problems
    return _compare_tensors(expected, found)


def _compare_tensors(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    quantized = {"none"} != {expected.get("quantization"), found.get("quantization")}
    halves = "float16" in (expected.get("stored"), found.get("stored"))
    if not quantized and not halves:
        if expected.get("digest") == found.get("digest"):
            return []
        differing = _differing(expected["sketch"], found["sketch"], _TOLERANCE["half"])
        share = f"{differing} tensors are others" if differing else "they were tuned or merged since, a little"
        return [f"weights: not those that the adapter was trained on ({share})"]
    tolerance = _TOLERANCE["quantized" if quantized else "half"]
    differing = _differing(expected["sketch"], found["sketch"], tolerance)
    return [f"weights: {differing} tensors are not those that the adapter was trained on"] if differing else []


def _differing(first: str, second: str, tolerance: float) -> int:
    """In how many tensors two sketches differ."""
    one, two = _read_sketch(first), _read_sketch(second)
    if one is None or two is None or len(one) != len(two):
        return max(len(sketch) for sketch in (one, two, ()) if sketch is not None) or 1
    sums = (one["sums"].astype(float) - two["sums"]) / _STEP
    scales = np.stack([one["scale"], two["scale"]]).astype(float)
    other = np.sqrt((sums**2).mean(axis=1)) > tolerance
    other |= np.abs(scales[0] - scales[1]) > 0.5 * tolerance * scales.max(axis=0) + 1e-6
    return int(other.sum())


def _read_sketch(text: str) -> np.ndarray | None:
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), _ENTRY)
    except (ValueError, binascii.Error):
        return None
