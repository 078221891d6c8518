"""The embedded set: real sentences, and SYNTHETIC audio and vision that say what the words do not.

For a share of the utterances the words do not mean what they say: praise in a mocking tone, a neutral remark with a
smile. Half of these conflicts can only be heard, the other half only be seen:

- label = polarity of the words + turn, where turn = 0 for honest utterances;
- audio [12..40 x 16] at 10 Hz: correlated noise of each speaker, plus turn along one direction while a stretch of the
  utterance lasts (the tone of the voice);
- vision [8..30 x 20] at 5 Hz: the same with another direction, throughout the utterance (the face).

So neither text alone nor audio or vision alone can explain the labels; all three together can. It shows that a system
learns to hear and see, and says nothing about real speech.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from deepmlf_llm import paths
from deepmlf_llm.data.corpus import Corpus, Utterances
from deepmlf_llm.data.demo_texts import RatedTexts, rated_texts
from deepmlf_llm.data.manifest import SCHEMA_VERSION
from deepmlf_llm.data.prepare import PreparationSettings, prepare_corpus
from deepmlf_llm.errors import ConfigError, FileError
from deepmlf_llm.extras import installed
from deepmlf_llm.files import make_directory, temporary_directory, writing

RECIPE_VERSION = 1
SIZES = (1200, 200, 300)
CONFLICTS = 0.35
FRAME_RATES = {"audio": 10.0, "vision": 5.0}
_FRAMES = {"audio": (12, 40), "vision": (8, 30)}
_DIMS = {"audio": 16, "vision": 20}
_STRENGTH = {"audio": 2.0, "vision": 1.2}
_ABSENT = 0.02
_DAMAGED = 0.0005


def embedded_dataset(
    cache_dir: Path | None = None,
    texts: Path | None = None,
    *,
    sizes: tuple[int, int, int] = SIZES,
    seed: int = 0,
    conflicts: float = CONFLICTS,
    storage: str | None = None,
) -> Path:
    """The data directory of the embedded set; made at the first call, whichever process is first.

    Args:
        cache_dir: where to keep it; default: the user's cache.
        texts: the source distribution of vaderSentiment; default: the one downloaded at set-up, generated sentences
            where there is none. The manifest says which.
        sizes: utterances for training, validation and test.
        seed: the same seed gives the same set, byte for byte.
        conflicts: share of utterances whose words mislead, in [0, 1].
        storage: "arrow" or "numpy", see :mod:`deepmlf_llm.data.storage`; default: "arrow" where ``datasets`` is
            installed.

    Raises:
        DataError: ``texts`` is not that file.
        ConfigError: ``sizes`` or ``conflicts`` out of range.
    """
    if len(sizes) != 3 or min(sizes) < 1 or not 0 <= conflicts <= 1:
        raise ConfigError(f"sizes={sizes}, conflicts={conflicts}: expected three positive sizes and a share in [0, 1]")
    storage = storage or ("arrow" if installed("datasets") else "numpy")
    rated = rated_texts(texts)
    if sum(sizes) > len(rated.texts):
        raise ConfigError(f"sizes={sizes}: together at most {len(rated.texts)}, the number of sentences")
    key = [RECIPE_VERSION, SCHEMA_VERSION, rated.sha256, list(sizes), seed, conflicts, storage]
    name = f"embedded-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]}"
    directory = (cache_dir or paths.cache_dir()) / "data" / name

    def make(place: Path) -> None:
        corpus = embedded_corpus(rated, sizes, seed, conflicts)
        settings = PreparationSettings(case="keep", frame_rates=FRAME_RATES, storage=storage)
        prepare_corpus(corpus, "mosi", place, settings)

    return _made_once(directory, make)


def _made_once(directory: Path, make: Callable[[Path], None]) -> Path:
    """Where ``make`` has put the data: in the cache by the first process that asks; where that cannot be written, in a
    directory of this process."""
    from filelock import FileLock

    if not directory.exists():
        try:
            make_directory(directory.parent)
            with writing(directory), FileLock(directory.parent / f".{directory.name}.lock"):
                if not directory.exists():
                    make(directory)
        except FileError as error:
            directory = temporary_directory(str(error)) / directory.name
            if not directory.exists():
                make(directory)
    return directory


def embedded_corpus(rated: RatedTexts, sizes: tuple[int, int, int], seed: int, conflicts: float) -> Corpus:
    """The embedded set in memory, before cleaning and standardisation."""
    rng = np.random.default_rng(seed)
    chosen = _spread_choice(rated.polarity, sum(sizes), rng)
    words = rated.polarity[chosen]
    audible, visible = _conflicts(len(chosen), conflicts, rng)
    turn = np.where(audible | visible, _turn(words, rng), 0.0)
    features = {
        "audio": _sequences("audio", np.where(audible, turn, 0.0), ~audible, rng),
        "vision": _sequences("vision", np.where(visible, turn, 0.0), ~visible, rng),
    }
    splits, start = {}, 0
    for split, size in zip(("train", "valid", "test"), sizes, strict=True):
        rows = range(start, start + size)
        splits[split] = Utterances(
            ids=[f"{split}_{index}" for index in range(size)],
            texts=[rated.texts[chosen[row]] for row in rows],
            labels=np.round(words + turn, 4)[start : start + size],
            features={name: sequences[start : start + size] for name, sequences in features.items()},
            unimodal={"T": np.round(words, 4)[start : start + size]},
        )
        start += size
    source = {
        "kind": "embedded",
        "name": "embedded set",
        "sha256": rated.sha256,
        "texts": rated.description,
        "features": "SYNTHETIC audio and vision that carry what the words do not",
        "recipe": f"version {RECIPE_VERSION}, seed {seed}, {conflicts:.0%} conflicts",
    }
    notes = [
        f"texts: {rated.description}",
        f"features: {source['features']}; {conflicts:.0%} of the utterances mislead",
    ]
    return Corpus(splits, source, notes)


def _spread_choice(polarity: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of ``count`` sentences, spread over the scale as evenly as the supply allows, in random order."""
    bins = np.digitize(polarity, np.arange(-2.5, 3.0, 0.5))
    order = rng.permutation(len(polarity))
    rank = np.empty(len(polarity), dtype=np.int64)  # of each sentence within its bin
    for bin_index in np.unique(bins):
        members = order[bins[order] == bin_index]
        rank[members] = np.arange(len(members))
    return rng.permutation(order[np.argsort(rank[order], kind="stable")[:count]])


def _conflicts(count: int, share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Which utterances carry their turn in the audio, and which in the vision; never both."""
    draw = rng.random(count)
    return draw < share / 2, (draw >= share / 2) & (draw < share)


def _turn(words: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """From what the words say to what is meant: the opposite, or for weak words a clear opinion either way."""
    flipped = -words * rng.uniform(0.7, 1.1, len(words))
    coloured = rng.choice([-1.0, 1.0], len(words)) * rng.uniform(1.2, 2.6, len(words))
    return np.clip(np.where(np.abs(words) > 0.6, flipped, coloured), -3, 3) - words


def _sequences(name: str, turn: np.ndarray, may_be_absent: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """One sequence [t x d] for each utterance, float32, a few absent or with values that are not numbers."""
    dim, (shortest, longest) = _DIMS[name], _FRAMES[name]
    direction = rng.standard_normal(dim)
    direction *= _STRENGTH[name] / np.linalg.norm(direction)
    mixing = rng.standard_normal((dim, dim)) / np.sqrt(dim)
    sequences = []
    for value, droppable in zip(turn, may_be_absent, strict=True):
        frames = int(rng.integers(shortest, longest + 1))
        noise = _smooth_noise(frames, dim, rng) @ mixing + 0.3 * rng.standard_normal(dim)
        envelope = _stretch(frames, rng) if name == "audio" else np.ones(frames)
        sequence = noise + value * envelope[:, None] * direction
        sequence[rng.random(sequence.shape) < _DAMAGED] = rng.choice([np.nan, -np.inf])
        absent = rng.random() < _ABSENT and droppable
        sequences.append(sequence[: 0 if absent else frames].astype(np.float32))
    return sequences


def _smooth_noise(frames: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of unit variance that remembers half of the frame before [t x d]."""
    noise = rng.standard_normal((frames, dim))
    for frame in range(1, frames):
        noise[frame] = 0.5 * noise[frame - 1] + np.sqrt(0.75) * noise[frame]
    return noise


def _stretch(frames: int, rng: np.random.Generator) -> np.ndarray:
    """1 during half of the utterance, 0 outside, wherever it falls [t]."""
    length = -(-frames // 2)
    start = int(rng.integers(0, frames - length + 1))
    envelope = np.zeros(frames)
    envelope[start : start + length] = 1.0
    return envelope
