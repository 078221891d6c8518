"""Whether a base model is whole: its files before they are read, its weights after. What is missing would be random."""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deepmlf_llm.backbones.quantization import is_packed
from deepmlf_llm.errors import BaseModelError
from deepmlf_llm.reading import parse_json, read_json

SHOWN = 4  # names that a message lists
_HEADER_LIMIT = 256 << 20  # bytes; a header names tensors
# (index of shards, single file), in the order in which the loader looks for them.
_LAYOUTS = (
    ("model.safetensors.index.json", "model.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model.bin"),
)
_POINTER = b"version https://git-lfs"
_FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
# Tables that a model makes for itself; old checkpoints of GPT-2, GPT-NeoX and LLaMA hold them all the same.
_BUFFERS = re.compile(r"(^|\.)(masked_bias|attn\.bias|attention\.bias|inv_freq|position_ids)$")
_LAYER = re.compile(r"\.(\d+)\.")


def check_files(directory: Path, name: str) -> None:
    """The files of a base in a local directory are all there, each as long as its header says.

    Reads headers only.

    Args:
        directory: of the base.
        name: what the user calls it.

    Raises:
        BaseModelError: a missing, truncated or damaged file, or a pointer in its place; by name.
    """
    packed = _is_packed(directory)
    problems = []
    for file in _weight_files(directory, name):
        reason = _damage(directory / file, packed)
        if reason:
            problems.append(f"{file} {reason}")
    if problems:
        raise BaseModelError(f"base_model={name!r}: {_some(problems, '; ')}; copy or download the base again")


def _is_packed(directory: Path) -> bool:
    """Whether the weights are integers on purpose: a base that was saved in 4 or 8 bits."""
    try:
        config = parse_json((directory / "config.json").read_bytes(), nan=True)
    except (OSError, ValueError, RecursionError):
        return False  # the loader says what is wrong with it
    return isinstance(config, dict) and bool(config.get("quantization_config"))


def _weight_files(directory: Path, name: str) -> list[str]:
    for index, single in _LAYOUTS:
        if (directory / single).is_file():
            return [single]
        if not (directory / index).is_file():
            continue
        try:
            entries = read_json(directory / index)["weight_map"].values()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BaseModelError(f"base_model={name!r}: {index} is damaged: {_line(error)}") from error
        shards = sorted({str(file) for file in entries})
        if outside := [file for file in shards if Path(file).name != file]:
            raise BaseModelError(f"base_model={name!r}: {index} names files elsewhere: {_some(outside)}")
        if not shards:
            raise BaseModelError(f"base_model={name!r}: {index} names no file")
        return shards
    return []


def _damage(path: Path, packed: bool) -> str:
    """What is wrong with a file of weights, as the end of a sentence; empty where nothing is."""
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(_POINTER))
        if start == _POINTER:
            return "is a git-lfs pointer, not the weights: run `git lfs pull`"
        if path.suffix != ".safetensors":
            whole = zipfile.is_zipfile(path) if start.startswith(b"PK") else start.startswith(b"\x80")
            return "" if whole else f"is truncated, or no file of PyTorch ({size} bytes)"
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(_HEADER_LIMIT, size - 8):
            return f"is not a safetensors file, or damaged ({size} bytes)"
        header = file.read(length)
    try:
        tensors = {key: entry for key, entry in parse_json(header).items() if key != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        odd = [f"{key} ({entry['dtype']})" for key, entry in tensors.items() if str(entry["dtype"]) not in _FLOATS]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return "has a damaged header"
    if not tensors:
        return "holds no tensor"
    if end != size - 8 - length:
        state = "truncated" if end > size - 8 - length else "damaged"
        return f"is {state}: {size} bytes, expected {end + 8 + length}"
    odd = [] if packed else [key for key in odd if not _BUFFERS.search(key.split(" ")[0])]
    return f"holds weights that are not floating-point numbers: {_some(sorted(odd))}" if odd else ""


def check_loaded(lm: nn.Module, info: Mapping[str, Any], name: str) -> None:
    """Every weight of the model came from the file, every tensor of the file went into the model, all are finite.

    Args:
        lm: the model as it was loaded.
        info: what transformers says of its loading (``output_loading_info=True``).
        name: what the user calls it.

    Raises:
        BaseModelError: missing, unknown or misshapen tensors, or values that are not finite; by name.
    """
    missing = sorted(map(str, info.get("missing_keys", ())))
    unknown = sorted(key for key in map(str, info.get("unexpected_keys", ())) if not _BUFFERS.search(key))
    misshapen = [
        f"{key} {list(found)} (config.json expects {list(expected)})"
        for key, found, expected in sorted(info.get("mismatched_keys", ()), key=str)
    ]
    problems = [
        f"{what} {_some(keys)}"
        for what, keys in (("missing", missing), ("unknown", unknown), ("misshapen", misshapen))
        if keys
    ]
    if problems:
        reason = _reason(lm, missing, unknown)
        raise BaseModelError(
            f"base_model={name!r}: its weights are not those of its config.json: {'; '.join(problems)}{reason}"
        )
    if errors := list(map(str, info.get("error_msgs", ()))):
        raise BaseModelError(f"base_model={name!r}: {_some([_line(error) for error in errors], '; ')}")
    check_finite(lm, name)


@torch.no_grad()
def check_finite(lm: nn.Module, name: str) -> None:
    """Every floating-point weight is a number; a sum is enough to know, and takes no memory.

    Raises:
        BaseModelError: one is NaN or infinite, by name.
    """
    broken = [
        key
        for key, weight in lm.named_parameters()
        if weight.is_floating_point() and not weight.is_meta
        if not is_packed(weight) and not bool(torch.isfinite(_sum(weight)))
    ]
    if broken:
        raise BaseModelError(f"base_model={name!r}: values that are not finite in {_some(broken)}")


def _sum(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().sum(dtype=torch.promote_types(weight.dtype, torch.float32))


def _reason(lm: Any, missing: Sequence[str], unknown: Sequence[str]) -> str:
    """The likely reason, as the end of a sentence; empty where there is no likely one."""
    prefixes = Counter(key[: -len(want)] for want in missing for key in unknown if key.endswith(f".{want}"))
    if prefixes:
        prefix = prefixes.most_common(1)[0][0]
        return (
            f"; the names in the file begin with {prefix!r}, of what wrapped the model when it was saved: save the "
            "model itself"
        )
    depth = getattr(lm.config.get_text_config(), "num_hidden_layers", None)
    for keys, others, says in ((missing, unknown, "fewer"), (unknown, missing, "more")):
        layers = {int(found[1]) for key in keys if (found := _LAYER.search(key))}
        if depth and layers and not others and _is_tail(layers, depth, keys is unknown):
            return f"; config.json has num_hidden_layers={depth}, the file {says}"
    if missing and not unknown and all("lm_head" in key or "embed_out" in key for key in missing):
        return "; the file holds the body of a model without its head: save the causal LM, or tie its embeddings"
    return ""


def _is_tail(layers: set[int], depth: int, beyond: bool) -> bool:
    """``layers`` are whole layers at the end: of the config (``beyond=False``) or behind it."""
    return min(layers) >= depth if beyond else 0 < min(layers) == depth - len(layers)


def _some(names: Sequence[str], separator: str = ", ") -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return separator.join(names[:SHOWN]) + more


def _line(error: object) -> str:
    return " ".join(str(error).split())[:200]
