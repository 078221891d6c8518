"""Encoders of sound: from 16 kHz samples, block by block, to frames with their times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import torch

from deepmlf_llm.media import acoustic
from deepmlf_llm.media.decode import SAMPLE_RATE
from deepmlf_llm.media.encoders import PROSODY, Loaded, check_layer, chosen_layer, load_encoder, preprocessing

Timed = tuple[np.ndarray, np.ndarray]
"""Times (s) [t] and values [t x d]."""


class AudioEncoder(Protocol):
    """Makes frames of sound.

    Attributes:
        facts: what it computes, as a recipe has it.
        place: where it was loaded from; empty: it needs no weights.
        dim: width of a frame.
    """

    facts: dict[str, Any]
    place: str
    dim: int

    def encode(self, blocks: Iterable[np.ndarray]) -> Iterator[Timed]:
        """Frames of blocks of 30 s, the last one shorter, one after the other."""


def open_audio_encoder(name: str, layer: str = "last", device: str = "cpu") -> AudioEncoder:
    """An encoder of sound by packaged name, directory or hub id; raises as :func:`load_encoder` does."""
    check_layer(layer)
    if name == PROSODY:
        return Prosody()
    loaded = load_encoder(name, "audio", device)
    return Whisper(loaded, name, layer) if loaded.model_type == "whisper" else Waveform(loaded, name, layer)


class Prosody:
    """The columns of :mod:`deepmlf_llm.media.acoustic`."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {"encoder": PROSODY, "encoder_version": acoustic.VERSION}
        self.place, self.dim = "", len(acoustic.COLUMNS)

    def encode(self, blocks: Iterable[np.ndarray]) -> Iterator[Timed]:
        return acoustic.prosody(blocks)


class _Windowed:
    """A Transformer that reads a block at once; every block stands for itself."""

    def __init__(self, loaded: Loaded, name: str, layer: str) -> None:
        self.loaded, self.layer, self.place = loaded, layer, name
        self.device = next(loaded.model.parameters()).device
        self.dim = int(loaded.model.config.hidden_size)
        self.facts: dict[str, Any] = {"encoder": loaded.model_type, "weights": loaded.weights, "layer": layer}

    @torch.inference_mode()
    def encode(self, blocks: Iterable[np.ndarray]) -> Iterator[Timed]:
        family = self.loaded.family
        start = 0
        for block in blocks:
            values = self._frames(block)
            places = start + np.arange(len(values)) * family.hop + self._first_middle()
            yield places / SAMPLE_RATE, values
            start += len(block)

    def _frames(self, block: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _first_middle(self) -> float:
        return self.loaded.family.reach / 2

    def _run(self, **inputs: torch.Tensor) -> torch.Tensor:
        fed = {key: value.to(self.device) for key, value in inputs.items()}
        out = self.loaded.model(**fed, output_hidden_states=self.layer != "last")
        return chosen_layer(out, self.layer)[0].float().cpu()


class Whisper(_Windowed):
    """Its encoder reads 30 s of log-mel spectrum, always; of the frames those that stand for sound are kept."""

    def __init__(self, loaded: Loaded, name: str, layer: str) -> None:
        from transformers import WhisperFeatureExtractor

        super().__init__(loaded, name, layer)
        self.mel = WhisperFeatureExtractor(feature_size=loaded.model.config.num_mel_bins)

    def _frames(self, block: np.ndarray) -> np.ndarray:
        mel = self.mel(block, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        states = self._run(input_features=mel)
        return states[: -(-len(block) // self.loaded.family.hop)].numpy()

    def _first_middle(self) -> float:
        return self.loaded.family.hop / 2


class Waveform(_Windowed):
    """wav2vec 2.0 and its kin read samples. One block at a time: with group norm a batch's padding changes features."""

    def __init__(self, loaded: Loaded, name: str, layer: str) -> None:
        super().__init__(loaded, name, layer)
        said = preprocessing(loaded.place).get("do_normalize")
        default = getattr(loaded.model.config, "feat_extract_norm", "") == "layer"
        self.normalise = default if said is None else bool(said)
        self.facts["normalised"] = self.normalise

    def _frames(self, block: np.ndarray) -> np.ndarray:
        if self.normalise:
            block = (block - block.mean()) / np.sqrt(block.var() + 1e-7)
        short = self.loaded.family.reach - len(block)
        samples = np.pad(block, (0, max(short, 0))).astype(np.float32)
        return self._run(input_values=torch.from_numpy(samples)[None]).numpy()
