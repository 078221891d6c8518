"""Other names that the field has for the same column, for messages: visual for vision, acoustic for audio."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

_OTHER_NAMES = {
    "audio": {"acoustic", "covarep", "opensmile", "sound", "speech", "voice", "wav", "waveform"},
    "vision": {"face", "facet", "facial", "image", "images", "openface", "video", "visual"},
    "text": {"caption", "raw_text", "sentence", "transcript", "transcription", "utterance"},
    "id": {"clip", "clip_id", "key", "segment", "uid"},
    "label": {"labels", "polarity", "regression_labels", "score", "sentiment", "target"},
}


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """The one of ``known`` that ``name`` most likely means: another case, another word of the field, a name inside it.

    >>> nearest_name("audio_features", ["audio", "vision"]), nearest_name("Visual", ["audio", "vision"])
    ('audio', 'vision')
    """
    known = list(known)
    folded = re.sub(r"\W+", "_", name.casefold()).strip("_")
    by_case = {entry.casefold(): entry for entry in known}
    for part in (folded, *folded.split("_")):
        if part in by_case:
            return by_case[part]
        for entry in known:
            if part in _OTHER_NAMES.get(entry.casefold(), ()):
                return entry
    near = get_close_matches(folded, list(by_case), n=1, cutoff=0.6)
    return by_case[near[0]] if near else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the nearest of ``known``, or an empty string."""
    near = nearest_name(name, known)
    return "" if near is None else f" (did you mean {near!r}?)"
