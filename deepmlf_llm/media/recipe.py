"""What was computed from a clip: written down beside the features, carried by the model, and done again by it.

The facts of a modality are those of :class:`~deepmlf_llm.data.facts.FeatureRecipe`: width, frame rate and what was
computed. For features of this room ``features["kind"]`` is ``"clips"``, and the rest says all that the numbers hang on:
encoder and sha256 of its weights, layer, how pictures were cut. Where the encoder lies is provenance, never compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deepmlf_llm.data.facts import CORPUS, FeatureRecipe, provenance_of
from deepmlf_llm.errors import ConfigError, DataError, Problems, suggest
from deepmlf_llm.media.faces import DETECTORS

KIND = "clips"
VERSION = 1
"""Of what this room does to a clip around the encoder. It changes when the same encoder would get other numbers."""

AUDIO, VISION = "audio", "vision"
AUDIO_RATE, VISION_RATE, MARGIN = 10.0, 2.0, 1.3


@dataclass(frozen=True)
class AudioSettings:
    """How sound becomes frames: encoder (packaged name, directory, hub id), frames a second (Hz), layer."""

    encoder: str
    rate: float = AUDIO_RATE
    layer: str = "last"


@dataclass(frozen=True)
class VisionSettings:
    """How pictures become frames: encoder, pictures a second (Hz), layer, face detector, side of the square that is
    cut out (sizes of the face)."""

    encoder: str
    fps: float = VISION_RATE
    layer: str = "last"
    face: str = "none"
    margin: float = MARGIN


@dataclass(frozen=True)
class RecipeSettings:
    """What is made of a clip; None: nothing of that kind."""

    audio: AudioSettings | None = None
    vision: VisionSettings | None = None
    device: str = field(default="cpu", compare=False)

    def check(self) -> None:
        """Raises ConfigError for values out of range."""
        problems = Problems(ConfigError, "extraction")
        if self.audio is not None:
            problems.check(0 < self.audio.rate <= 50, f"audio rate {self.audio.rate:g}: expected up to 50 Hz")
        if self.vision is not None:
            fps, face, margin = self.vision.fps, self.vision.face, self.vision.margin
            problems.check(0 < fps <= 60, f"fps {fps:g}: expected up to 60 Hz")
            problems.check(
                face in DETECTORS, f"face {face!r}: expected one of {', '.join(DETECTORS)}{suggest(face, DETECTORS)}"
            )
            problems.check(0.5 <= margin <= 4, f"margin {margin:g}: expected 0.5 to 4 sizes of the face")
        problems.raise_if_any()


def fingerprint(modalities: Mapping[str, Any]) -> str:
    """One short name for how all modalities are made: equal where :func:`feature_problems` finds nothing."""
    recipes = {name: FeatureRecipe.of(facts) for name, facts in modalities.items()}
    told: dict[str, list[Any]] = {}
    for name, recipe in recipes.items():
        by = [] if recipe.standardised_by == CORPUS else [recipe.standardised_by]
        told[name] = [recipe.dim, recipe.frame_rate, recipe.computed, *by]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def settings_of(modalities: Mapping[str, Any], encoders: Mapping[str, str] | None = None) -> RecipeSettings:
    """How clips have to be read for a model.

    Args:
        modalities: what it remembers of its features (``config.modalities``).
        encoders: modality -> where its encoder lies now; default: where it was.

    Raises:
        DataError: its features were not made from clips by a recipe that is known; the message says what they are.
    """
    found: dict[str, Any] = {}
    for name, facts in modalities.items():
        made = FeatureRecipe.of(facts).computed
        if made.get("kind") != KIND or name not in (AUDIO, VISION):
            raise DataError(_no_clips(name, facts))
        if made.get("version") != VERSION:
            raise DataError(
                f"this model's {name} features are of recipe version {made.get('version')!r}, this package makes "
                f"version {VERSION}: use the version of deepmlf_llm that made them"
            )
        packaged = "weights" not in made
        place = (encoders or {}).get(name) or (made["encoder"] if packaged else provenance_of(facts).get("encoder", ""))
        rate = FeatureRecipe.of(facts).frame_rate
        layer = str(made.get("layer", "last"))
        if name == AUDIO:
            found[name] = AudioSettings(place, rate or AUDIO_RATE, layer)
        else:
            found[name] = VisionSettings(place, rate or VISION_RATE, layer, made["face"], made["margin"])
    return RecipeSettings(found.get(AUDIO), found.get(VISION))


def _no_clips(name: str, facts: Any) -> str:
    recipe, source = FeatureRecipe.of(facts), provenance_of(facts).get("source")
    told = recipe.describe()
    how = f"were made by {told}" if told else "come as numbers" + (f" from {source}" if source else "")
    return (
        f"this model cannot take clips: its {name} features ({recipe.dim} columns) {how}, and the programs that make "
        "such features (COVAREP, FACET, OpenFace and their kin) are not here, so nothing made of a clip would mean the "
        "same; give features of that kind with --input, or train on what `deepmlf extract-features` makes"
    )
