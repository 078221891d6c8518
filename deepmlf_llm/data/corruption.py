"""Modalities taken away or made noisy, the same way whoever asks: by the seed and the utterance's id alone.

Nothing here depends on the batch, the process, the epoch or the other utterances. A modality that is absent has no
frames, which a batch turns into an all-False mask. What is absent at one share is absent at every larger one, and noise
of another strength is the same noise times a number: so the points of a curve differ in nothing but the share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from deepmlf_llm.errors import ConfigError, Problems, suggest

LARGEST_NOISE = 100.0


@dataclass(frozen=True)
class Corruption:
    """What is done to the features of a split.

    Attributes:
        missing: modality -> share of the utterances that lack it, in [0, 1].
        noise: modality -> standard deviation of Gaussian noise, in units of the feature's own standard deviation over
            the training split.
        seed: of masks and noise.
    """

    missing: Mapping[str, float] = field(default_factory=dict)
    noise: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0

    def is_absent(self, modality: str, identity: str) -> bool:
        """Whether the utterance loses the modality."""
        return _bits(self.seed, "missing", modality, identity, 8) < self.missing.get(modality, 0.0) * 2**64

    def frames(self, modality: str, identity: str, frames: np.ndarray, constant: Iterable[int] = ()) -> np.ndarray:
        """Features [t x d] as the model shall see them.

        Args:
            modality: name.
            identity: id of the utterance.
            frames: standardised, float32.
            constant: dimensions that never varied in training: their standard deviation is 0, and so is the noise.
        """
        if self.is_absent(modality, identity):
            return frames[:0]
        strength = self.noise.get(modality, 0.0)
        if strength == 0 or not len(frames):
            return frames
        random = np.random.default_rng(_bits(self.seed, "noise", modality, identity, 16))
        noise = random.standard_normal(frames.shape, dtype=np.float32)
        noise[:, list(constant)] = 0
        return np.asarray(frames + np.float32(strength) * noise, dtype=np.float32)


def _bits(seed: int, what: str, modality: str, identity: str, count: int) -> int:
    """So many bytes that look random, from what names them."""
    text = f"{seed}\0{what}\0{modality}\0{identity}"
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:count], "big")


class Corrupted(Dataset[dict[str, Any]]):
    """A data set of utterances with a corruption.

    Args:
        dataset: items with ``"id"`` (else their row counts as one) and ``"<modality>"`` [t x d].
        corruption: see there.
        constant: modality -> dimensions without noise.
    """

    texts: list[str]  # where the data set below has them

    def __init__(
        self, dataset: Any, corruption: Corruption, constant: Mapping[str, Iterable[int]] | None = None
    ) -> None:
        self.dataset, self.corruption, self.constant = dataset, corruption, dict(constant or {})
        for name in ("ids", "texts", "labels", "unimodal"):  # what can be read of all utterances without their features
            if hasattr(dataset, name):
                setattr(self, name, getattr(dataset, name))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item: dict[str, Any] = dict(self.dataset[index])
        for modality in {*self.corruption.missing, *self.corruption.noise}:
            if item.get(modality) is not None:
                frames = np.asarray(item[modality])
                identity = self._identity(item, index)
                item[modality] = self.corruption.frames(modality, identity, frames, self.constant.get(modality, ()))
        return item

    def _identity(self, item: Mapping[str, Any], index: int) -> str:
        identity = item.get("id")
        return str(index % len(self) if identity is None else identity)

    def absent(self, modality: str) -> int:
        """How many utterances have no frames of it, those that had none before included."""
        return sum(self[i].get(modality) is None or not len(self[i][modality]) for i in range(len(self)))


def read_levels(words: Iterable[str], what: str, largest: float = 1.0) -> dict[str, tuple[float, ...]]:
    """``["audio=0:0.5:1", "vision=1"]`` as modality -> levels.

    Args:
        words: of the form ``modality=level`` or ``modality=level:level:..``.
        what: the option, for messages.
        largest: level.

    Raises:
        ConfigError: not of that form, a modality twice, or a level below 0 or above ``largest``.
    """
    problems = Problems(ConfigError, what)
    found: dict[str, tuple[float, ...]] = {}
    for word in words:
        name, equals, text = word.partition("=")
        try:
            levels = tuple(dict.fromkeys(float(level) for level in text.split(":")))
        except ValueError:
            levels = ()
        good = bool(name and equals and levels) and all(0 <= level <= largest for level in levels)
        problems.check(good, f"{word!r}: expected modality=level or modality=level:level, levels 0 to {largest:g}")
        problems.check(name not in found, f"{name!r} stands twice")
        found[name] = levels
    problems.raise_if_any()
    return found


def one_level_each(words: Sequence[str]) -> bool:
    """Whether :func:`read_levels` reads these as one level for each modality."""
    try:
        return all(len(levels) == 1 for levels in read_levels(words, "").values())
    except ConfigError:
        return False


def check_modalities(corruption: Corruption, modalities: Mapping[str, Any], source: str) -> dict[str, list[int]]:
    """Whether a corruption can be done to these modalities.

    Args:
        corruption: see there.
        modalities: name -> facts, as a manifest (mappings) or a config has them.
        source: for the message.

    Returns:
        Modality -> its constant dimensions.

    Raises:
        ConfigError: an unknown modality, or noise for features that are not standardised.
    """
    problems = Problems(ConfigError, source)
    constant: dict[str, list[int]] = {}
    known = ", ".join(modalities) or "none"
    for name in dict.fromkeys([*corruption.missing, *corruption.noise]):
        if name not in modalities:
            hint = "the text cannot be missing" if name == "text" else f"there are {known}"
            problems.check(False, f"no modality {name!r}{suggest(name, modalities)}; {hint}")
            continue
        facts = modalities[name]
        standard = facts.get("standardisation") if isinstance(facts, Mapping) else facts.standardisation
        constant[name] = list((standard or {}).get("constant", ()))
        problems.check(
            name not in corruption.noise or standard is not None,
            f"noise of {name!r} is in units of the training split's standard deviation, and these features are not "
            "standardised: prepare them with `deepmlf prepare`",
        )
    problems.raise_if_any()
    return constant
