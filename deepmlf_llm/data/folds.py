"""Cross-validation over videos: every utterance is tested once, and no video is in two splits of a fold."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deepmlf_llm.data.corpus import Corpus, Utterances
from deepmlf_llm.data.videos import videos_of
from deepmlf_llm.errors import ConfigError, DataError

LEAST, MOST = 3, 100  # folds: one tests, one validates, the others train


@dataclass(frozen=True)
class Fold:
    """Fold ``number`` (from 0) of ``folds``: its videos are the test split, those of the next fold validate.

    Raises:
        ConfigError: no such fold.
    """

    number: int
    folds: int

    def __post_init__(self) -> None:
        if not (LEAST <= self.folds <= MOST and 0 <= self.number < self.folds):
            raise ConfigError(
                f"fold {self.number}/{self.folds}: expected K/N, N from {LEAST} to {MOST}, K from 0 to N - 1, as 0/5"
            )

    @classmethod
    def parse(cls, text: str) -> Fold:
        """From ``"0/5"``; raises ConfigError for anything else."""
        match = re.fullmatch(r"(\d{1,3})/(\d{1,3})", text.strip())
        if match is None:
            raise ConfigError(f"fold {text!r}: expected K/N, as 0/5 for the first of five")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.folds}"


def fold_corpus(corpus: Corpus, fold: Fold) -> Corpus:
    """The corpus split anew for one fold; the splits that it came in count for nothing.

    Raises:
        DataError: an id that names no video, an id that stands twice, or fewer videos than folds.
    """
    rows = [(split, row) for split, part in corpus.splits.items() for row in range(len(part))]
    ids = [corpus.splits[split].ids[row] for split, row in rows]
    name = corpus.source["name"]
    videos = videos_of(ids, name, "folds")
    if len(set(ids)) < len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise DataError(f"{name}: {twice!r} stands twice; a fold needs each utterance once")
    of_video = assign_videos(videos, fold.folds, name)
    number = np.asarray([of_video[video] for video in videos])
    tested, validated = number == fold.number, number == (fold.number + 1) % fold.folds
    chosen = {"train": ~(tested | validated), "valid": validated, "test": tested}
    splits = {split: _take(corpus, [rows[place] for place in np.flatnonzero(which)]) for split, which in chosen.items()}
    note = f"fold {fold} over videos; the splits of the source were put together for it"
    return Corpus(splits, corpus.source, [*corpus.notes, note], corpus.task, corpus.modalities)


def assign_videos(videos: Sequence[str], folds: int, source: str = "data") -> dict[str, int]:
    """Video of each utterance -> fold of each video, with about as many utterances in each fold.

    Long videos first, each to the fold that has least; the same for any order of the utterances.

    Raises:
        DataError: fewer videos than folds.
    """
    counts = Counter(videos)
    if len(counts) < folds:
        raise DataError(f"{source}: {len(counts)} videos, expected at least one for each of {folds} folds")
    order = sorted(counts, key=lambda video: (-counts[video], hashlib.sha256(video.encode()).digest()))
    sizes, found = [0] * folds, {}
    for video in order:
        found[video] = sizes.index(min(sizes))
        sizes[found[video]] += counts[video]
    return found


def _take(corpus: Corpus, rows: Sequence[tuple[str, int]]) -> Utterances:
    parts = corpus.splits
    names = next(iter(parts.values())).features
    unimodal = dict.fromkeys(name for part in parts.values() for name in part.unimodal)
    return Utterances(
        [parts[split].ids[row] for split, row in rows],
        [parts[split].texts[row] for split, row in rows],
        np.asarray([parts[split].labels[row] for split, row in rows]),
        {name: [parts[split].features[name][row] for split, row in rows] for name in names},
        {
            name: np.asarray(
                [parts[split].unimodal[name][row] if name in parts[split].unimodal else np.nan for split, row in rows]
            )
            for name in unimodal
        },
    )
