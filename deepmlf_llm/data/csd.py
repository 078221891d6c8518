"""CMU-MultimodalSDK's computational sequences (``.csd``, HDF5), aligned to the segments that have a label.

::

    DIR/*.csd          <name>/data/<video or video[n]>/{features [n x d], intervals [n x 2] in seconds}
    DIR/splits.json    {"train": [video, ...], "valid": [...], "test": [...]}

One of the files holds labels, one the words, the others features. Segment n of a video's labels is the utterance
``video[n]``; its frames are those whose interval overlaps the segment's, in the order of time, and so are its words,
without the pauses. Files that the SDK has aligned already are keyed by ``video[n]`` and taken as they are.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepmlf_llm.data.corpus import Corpus, Utterances
from deepmlf_llm.data.hdf5 import groups, open_hdf5, read_array
from deepmlf_llm.data.mmsa import read_labels
from deepmlf_llm.data.source_names import Reading, split_keys
from deepmlf_llm.data.values import read_frames, read_text
from deepmlf_llm.data.word_tuples import PAUSES
from deepmlf_llm.errors import DataError
from deepmlf_llm.files import sha256
from deepmlf_llm.reading import read_json

SPLITS_FILE = "splits.json"
SUFFIX = ".csd"
_SEGMENT = re.compile(r"(.+)\[(\d+)\]")
_TOUCHING = 1e-3
"""Seconds by which neighbours may overlap by rounding alone."""
_AUDIO = ("covarep", "opensmile", "audio", "acoustic", "librosa", "mfcc", "egemaps", "wav2vec", "hubert", "whisper")
_VISION = ("facet", "openface", "visual", "vision", "video", "face", "emotient")
_TEXT = ("glove", "bert", "word", "token", "phon", "text", "transcript")
_SPLITS_HINT = (
    'write {"train": [...], "valid": [...], "test": [...]} with the ids of videos; those of CMU-MOSI and CMU-MOSEI are '
    "mmsdk.mmdatasdk.cmu_mosi.standard_folds.standard_train_fold, standard_valid_fold and standard_test_fold"
)


@dataclass
class Computational:
    """One computational sequence.

    Attributes:
        name, path: its own name, and the file.
        videos: name -> group of its data.
        holds_strings: its features are words or phones.
        odd: intervals met so far that are not finite or end before they begin.
    """

    name: str
    path: Path
    videos: dict[str, Any]
    holds_strings: bool
    odd: int = 0

    @property
    def key(self) -> str:
        return re.sub(r"\W+", "_", self.name.strip().lower()).strip("_")

    def frames(self, video: str) -> tuple[np.ndarray, np.ndarray]:
        """Features [n x d] and intervals [n x 2] of a video, in the order of time."""
        where = f"{self.path}: {self.name}, {video!r}"
        group = self.videos[video]
        features, intervals = read_array(group, "features", where), read_array(group, "intervals", where)
        features = features[:, None] if features.ndim == 1 else features
        if intervals.dtype.kind not in "fiu" or intervals.shape != (len(features), 2):
            found = f"{intervals.dtype} of shape {intervals.shape}"
            raise DataError(f"{where}: intervals are {found}, expected a begin and an end for {len(features)} rows")
        self.odd += int((~(intervals[:, 1] >= intervals[:, 0]) | ~np.isfinite(intervals).all(axis=1)).sum())
        order = np.argsort(intervals[:, 0], kind="stable")
        return features[order], intervals[order].astype(np.float64)


@dataclass
class Segment:
    """An utterance: where it lies in its video, and its label row."""

    name: str
    video: str
    begin: float
    end: float
    label: np.ndarray


def read_csd_folder(directory: Path, reading: Reading) -> Corpus:
    """Reads a folder of computational sequences.

    Args:
        directory: holds the ``.csd`` files and ``splits.json``.
        reading: what is asked for.

    Raises:
        MissingPackageError: ``h5py`` is not installed.
        DataError: a file is damaged or no computational sequence; there are not one of labels and
            one of words; ``splits.json`` is missing or names a video twice; a label row that is none.
    """
    paths = sorted(path for path in directory.iterdir() if path.suffix.lower() == SUFFIX)
    digest = hashlib.sha256()
    with ExitStack() as stack:
        sequences = [sequence for path in paths for sequence in _sequences(path, stack.enter_context(open_hdf5(path)))]
        labels, words, features = _sort_out(sequences, directory)
        split_of = _read_splits(directory / SPLITS_FILE)
        notes: list[str] = []
        left = [sequence.name for sequence in sequences if sequence not in (labels, words, *features.values())]
        if left:
            notes.append(f"left out: {', '.join(left)} (the words are read instead)")
        keys = reading.keys(features, str(directory), notes, _usual_names(list(features)))
        chosen = {name: features[key] for name, key in keys.items()}
        by_split: dict[str, list[Segment]] = {}
        outside: list[str] = []
        for segment in _segments(labels):
            split = split_of.get(segment.name) or split_of.get(segment.video)
            by_split.setdefault(split, []).append(segment) if split else outside.append(segment.name)
        if outside:
            notes.append(f"{len(outside)} segments are in no split of {SPLITS_FILE} (such as {outside[0]!r})")
        if not by_split:
            raise DataError(f"{directory / SPLITS_FILE}: names no video that has labels, such as {outside[:1]}")
        corpus = Corpus({}, {"kind": "csd", "name": directory.resolve().name}, notes)
        for split in ("train", "valid", "test"):
            if split in by_split:
                where = f"{labels.path}: split {split!r}"
                corpus.splits[split] = _utterances(by_split[split], words, chosen, reading, where, notes)
        for sequence in (words, *chosen.values()):
            if sequence.odd:
                notes.append(
                    f"{sequence.odd} intervals of {sequence.name} end before they begin and belong to no segment"
                )
    for path in [*paths, directory / SPLITS_FILE]:
        digest.update(f"{path.name} {sha256(path)}\n".encode("utf-8", "surrogateescape"))
    corpus.source["sha256"] = digest.hexdigest()
    return corpus


def _sequences(path: Path, file: Any) -> Iterator[Computational]:
    found = False
    for name, root in groups(file, str(path)).items():
        parts = groups(root, f"{path}: {name}")
        if "data" not in parts:
            continue
        found = True
        videos = groups(parts["data"], f"{path}: {name}/data")
        if not videos:
            raise DataError(f"{path}: {name} holds no video")
        first = read_array(next(iter(videos.values())), "features", f"{path}: {name}, {next(iter(videos))!r}")
        yield Computational(name, path, videos, first.dtype.kind in "SUO")
    if not found:
        raise DataError(f"{path}: is HDF5 but no computational sequence: no <name>/data/<video> in it")


def _sort_out(
    sequences: list[Computational], directory: Path
) -> tuple[Computational, Computational, dict[str, Computational]]:
    """Labels, words, and features by key."""
    listed = ", ".join(f"{sequence.name!r}" for sequence in sequences)
    labels = [sequence for sequence in sequences if "label" in sequence.key and not sequence.holds_strings]
    if len(labels) > 1:
        labels = [sequence for sequence in labels if re.search("opinion|sentiment|all_labels", sequence.key)]
    words = [sequence for sequence in sequences if sequence.holds_strings]
    if len(words) > 1:
        words = [sequence for sequence in words if "word" in sequence.key]
    for what, found in (("labels", labels), ("words", words)):
        if len(found) != 1:
            raise DataError(
                f"{directory}: expected one sequence of {what} among the {SUFFIX} files, found "
                f"{len(found)} among {listed}"
            )
    features: dict[str, Computational] = {}
    for sequence in sequences:
        if sequence.holds_strings or "label" in sequence.key or any(mark in sequence.key for mark in _TEXT):
            continue
        if sequence.key in features:
            raise DataError(
                f"{directory}: {sequence.name!r} is in two files: {features[sequence.key].path.name} and "
                f"{sequence.path.name}; remove one"
            )
        features[sequence.key] = sequence
    return labels[0], words[0], features


def _usual_names(keys: list[str]) -> dict[str, str]:
    """audio and vision for the one sequence that is either, by its extractor's name."""
    usual = {}
    for name, marks in (("audio", _AUDIO), ("vision", _VISION)):
        found = [key for key in keys if any(mark in key for mark in marks)]
        if len(found) == 1:
            usual[found[0]] = name
    return usual


def _read_splits(path: Path) -> dict[str, str]:
    """Video or segment -> split."""
    if not path.is_file():
        raise DataError(f"{path}: missing, and nothing else says which video is for training; {_SPLITS_HINT}")
    try:
        content = read_json(path)
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error}); {_SPLITS_HINT}") from None
    keys = split_keys(content, str(path)) if isinstance(content, dict) else {}
    if not keys:
        raise DataError(f"{path}: no split in it; {_SPLITS_HINT}")
    split_of: dict[str, str] = {}
    for split, key in keys.items():
        if not isinstance(content[key], list) or not all(isinstance(name, str) for name in content[key]):
            raise DataError(f"{path}: {key} is not a list of ids")
        for name in content[key]:
            if split_of.setdefault(name, split) != split:
                raise DataError(f"{path}: {name!r} is in {split_of[name]} and in {split}")
    return split_of


def _segments(labels: Computational) -> Iterator[Segment]:
    for key in labels.videos:
        rows, intervals = labels.frames(key)
        if labels.odd:
            raise DataError(f"{labels.path}: {labels.name}, {key!r}: segments that end before they begin, or never")
        aligned = _SEGMENT.fullmatch(key)
        if aligned and len(rows) != 1:
            raise DataError(f"{labels.path}: {labels.name}, {key!r}: {len(rows)} labels for one segment")
        for number, (row, (begin, end)) in enumerate(zip(rows, intervals, strict=True)):
            name, video = (key, aligned[1]) if aligned else (f"{key}[{number}]", key)
            yield Segment(name, video, float(begin), float(end), row)


def _utterances(
    segments: list[Segment],
    words: Computational,
    features: Mapping[str, Computational],
    reading: Reading,
    where: str,
    notes: list[str],
) -> Utterances:
    ids = [segment.name for segment in segments]
    if len({segment.label.shape for segment in segments}) > 1:
        raise DataError(f"{where}: rows of labels differ in length")
    rows = np.stack([segment.label for segment in segments])
    return Utterances(
        ids=ids,
        texts=[_text(part, words) for part in _parts(words, segments)],
        labels=read_labels(rows, reading, where, ids, notes),
        features={
            name: [
                read_frames(part, f"{sequence.path}: {sequence.name}, {segment.name!r}")
                for segment, part in zip(segments, _parts(sequence, segments), strict=True)
            ]
            for name, sequence in features.items()
        },
    )


def _parts(sequence: Computational, segments: list[Segment]) -> Iterator[np.ndarray]:
    """What a sequence holds of each segment; each video is read once, since its segments come together."""
    video, read = None, (np.empty((0, 0)), np.empty((0, 2)))
    for segment in segments:
        if segment.name in sequence.videos:
            yield sequence.frames(segment.name)[0]
            continue
        if segment.video not in sequence.videos:
            yield np.empty((0, 0), dtype=np.float32)
            continue
        if segment.video != video:
            video, read = segment.video, sequence.frames(segment.video)
        yield read[0][overlapping(read[1], segment.begin, segment.end)]


def overlapping(intervals: np.ndarray, begin: float, end: float) -> np.ndarray:
    """Which intervals [n x 2] overlap the segment from ``begin`` to ``end`` (seconds), by more than rounding."""
    starts, ends = intervals[:, 0], intervals[:, 1]
    shared = np.minimum(ends, end) - np.maximum(starts, begin)
    points = (starts == ends) & (starts >= begin) & (starts < end)
    return points | (shared > np.minimum(_TOUCHING, (ends - starts) / 2))


def _text(words: np.ndarray, sequence: Computational) -> str:
    if words.size and words.dtype.kind not in "SUO":
        raise DataError(f"{sequence.path}: {sequence.name} holds {words.dtype}, expected words")
    try:
        found = [read_text(word).strip() for word in words.reshape(-1).tolist()]
    except ValueError as error:
        raise DataError(f"{sequence.path}: {sequence.name}: a word {error}") from None
    return " ".join(word for word in found if word and word not in PAUSES)
