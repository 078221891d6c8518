"""Encoders of sight: from square pictures to one frame each."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from deepmlf_llm.extras import require
from deepmlf_llm.media.encoders import OUTLINE, Loaded, check_layer, chosen_layer, load_encoder, preprocessing

BATCH = 16
_OUTLINE_VERSION, _OUTLINE_SIDE, _CELL, _ORIENTATIONS = 1, 64, 8, 8
_HALF = [0.5, 0.5, 0.5]


class VisionEncoder(Protocol):
    """Makes a frame of each picture.

    Attributes:
        facts: what it computes, as a recipe has it.
        place: where it was loaded from; empty: it needs no weights.
        side: pixels of the square that it sees.
        dim: width of a frame.
    """

    facts: dict[str, Any]
    place: str
    side: int
    dim: int

    def encode(self, squares: list[np.ndarray]) -> np.ndarray:
        """[n x d] float32 of n pictures [side x side x 3] uint8 RGB."""


def open_vision_encoder(name: str, layer: str = "last", device: str = "cpu") -> VisionEncoder:
    """An encoder of sight by packaged name, directory or hub id; raises as :func:`load_encoder` does."""
    check_layer(layer)
    return Outline() if name == OUTLINE else Transformer(load_encoder(name, "vision", device), name, layer)


def resized(square: np.ndarray, side: int) -> np.ndarray:
    """A picture [side x side x 3], bicubic as Pillow has it (which looks at every pixel where it makes it smaller)."""
    if square.shape[:2] == (side, side):
        return square
    image = require("PIL.Image", "preparing pictures")
    return np.asarray(image.fromarray(square).resize((side, side), image.Resampling.BICUBIC))


class Outline:
    """Histograms of oriented gradients (Dalal and Triggs 2005), 8 x 8 cells of 8 orientations, each of length 1."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {"encoder": OUTLINE, "encoder_version": _OUTLINE_VERSION}
        self.place, self.side = "", _OUTLINE_SIDE
        self.dim = (_OUTLINE_SIDE // _CELL) ** 2 * _ORIENTATIONS

    def encode(self, squares: list[np.ndarray]) -> np.ndarray:
        grey = np.stack(squares).astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / 255
        down, across = np.gradient(grey, axis=(1, 2))
        strength = np.hypot(down, across)
        angle = np.mod(np.arctan2(down, across), np.pi) / np.pi * _ORIENTATIONS
        low = np.floor(angle)
        cells = self.side // _CELL
        out = np.zeros((len(squares), cells, cells, _ORIENTATIONS), np.float32)
        for shift in (0, 1):  # a gradient counts for the two orientations beside it
            share = strength * (1 - np.abs(angle - low - shift))
            for k in range(_ORIENTATIONS):
                own = np.where((low + shift) % _ORIENTATIONS == k, share, 0)
                out[..., k] += own.reshape(-1, cells, _CELL, cells, _CELL).sum((2, 4))
        length = np.sqrt((out**2).sum(-1, keepdims=True) + 0.01)
        return (out / length).reshape(len(squares), -1)


def _usual_scale(model_type: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of a family's pictures, for a checkpoint that does not say its own."""
    from transformers import image_utils

    if model_type == "clip":
        return image_utils.OPENAI_CLIP_MEAN, image_utils.OPENAI_CLIP_STD
    if model_type.startswith("dino"):
        return image_utils.IMAGENET_DEFAULT_MEAN, image_utils.IMAGENET_DEFAULT_STD
    return _HALF, _HALF


class Transformer:
    """CLIP, SigLIP, DINO, ViT: pictures are resized, scaled by the checkpoint's mean and standard deviation, and read
    in batches."""

    def __init__(self, loaded: Loaded, name: str, layer: str) -> None:
        self.loaded, self.layer, self.place = loaded, layer, name
        self.device = next(loaded.model.parameters()).device
        config = getattr(loaded.model.config, "vision_config", loaded.model.config)
        said = preprocessing(loaded.place)
        self.patch, self.dim = int(config.patch_size), int(config.hidden_size)
        patches = getattr(config, "num_patches", None)
        self.side = _side(said, getattr(config, "image_size", None) or round((patches or 256) ** 0.5) * self.patch)
        usual = _usual_scale(loaded.model_type)
        found = (said.get(key) or known for key, known in zip(("image_mean", "image_std"), usual, strict=True))
        self.mean, self.std = (list(values) for values in found)
        self.pooling = loaded.family.pooling if layer == "last" else "mean"
        self.facts: dict[str, Any] = {
            "encoder": loaded.model_type,
            "weights": loaded.weights,
            "layer": layer,
            "pooling": self.pooling,
            "side": self.side,
            "mean": self.mean,
            "std": self.std,
        }

    @torch.inference_mode()
    def encode(self, squares: list[np.ndarray]) -> np.ndarray:
        mean, std = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (self.mean, self.std))
        found = []
        for start in range(0, len(squares), BATCH):
            pixels = torch.from_numpy(np.stack(squares[start : start + BATCH])).permute(0, 3, 1, 2).float() / 255
            inputs = self._inputs((pixels - mean) / std)
            fed = {key: value.to(self.device) for key, value in inputs.items()}
            out = self.loaded.model(**fed, output_hidden_states=self.layer != "last")
            found.append(self._pooled(out).float().cpu().numpy())
        return np.concatenate(found)

    def _inputs(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """[b x 3 x side x side]; SigLIP 2 takes the patches themselves, and how many there are."""
        if self.loaded.model_type != "siglip2":
            return {"pixel_values": pixels}
        count, across = len(pixels), self.side // self.patch
        cut = pixels.reshape(count, 3, across, self.patch, across, self.patch).permute(0, 2, 4, 3, 5, 1)
        return {
            "pixel_values": cut.reshape(count, across * across, -1),
            "pixel_attention_mask": torch.ones(count, across * across, dtype=torch.long),
            "spatial_shapes": torch.full((count, 2), across, dtype=torch.long),
        }

    def _pooled(self, out: Any) -> torch.Tensor:
        if self.pooling == "pooler":
            return out.pooler_output
        states = chosen_layer(out, self.layer)
        return states[:, 0] if self.pooling == "cls" else states.mean(1)


def _side(said: dict[str, Any], fallback: int) -> int:
    """Pixels of a side, as the crop, else the size of the checkpoint's preprocessing says."""
    for size in (said.get("crop_size"), said.get("size"), fallback):
        if isinstance(size, dict):
            size = size.get("height") or size.get("shortest_edge")
        if isinstance(size, int) and size > 0:
            return size
    return fallback
