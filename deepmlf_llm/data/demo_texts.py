"""The words of the embedded set: rated real sentences where they can be had, generated ones elsewhere.

Real: reviews of films and products, each with the mean polarity of 20 human raters in [-4, 4], from the source
distribution of the PyPI package ``vaderSentiment`` 3.3.2 (MIT; Hutto and Gilbert, ICWSM 2014).
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepmlf_llm import paths
from deepmlf_llm.errors import DataError

ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
_INNER = "additional_resources/hutto_ICWSM_2014.tar.gz"
_FILES = ("movieReviewSnippets_GroundTruth.txt", "amazonReviewSnippets_GroundTruth.txt")
_RATING_TO_POLARITY = 3 / 4  # ratings in [-4, 4], polarity in [-3, 3]
WORDS = (4, 20)


@dataclass(frozen=True)
class RatedTexts:
    """Sentences, the polarity of their words in [-3, 3] [N], and what they are."""

    texts: list[str]
    polarity: np.ndarray
    description: str
    sha256: str


def rated_texts(archive: Path | None = None) -> RatedTexts:
    """Real sentences from ``archive``, or from the download of the set-up; generated ones where that was never made.

    Raises:
        DataError: ``archive`` was given and is not there, or the file that is there is not that distribution.
    """
    if archive is None:
        archive = paths.downloads_dir() / ARCHIVE
        if not archive.is_file():
            return generated_texts()
    if not archive.is_file():
        raise DataError(f"{archive}: no such file")
    return _read_archive(archive)


def _read_archive(archive: Path) -> RatedTexts:
    content = archive.read_bytes()
    try:
        inner = _member(content, _INNER)
        tables = [_member(inner, name).decode("utf-8", "replace") for name in _FILES]
    except (tarfile.TarError, OSError, EOFError, KeyError) as error:
        raise DataError(f"{archive}: not the source distribution of vaderSentiment 3.3.2 ({error!r})") from None
    rated: dict[str, float] = {}
    for line in "\n".join(tables).splitlines():
        cells = line.split("\t")
        if len(cells) == 3 and _is_usable(text := " ".join(cells[2].split())):
            rated.setdefault(text, float(cells[1]) * _RATING_TO_POLARITY)
    if not rated:
        raise DataError(f"{archive}: holds no rated sentences")
    description = "real English review sentences with the mean polarity of 20 raters (vaderSentiment 3.3.2, MIT)"
    return RatedTexts(list(rated), np.array(list(rated.values())), description, hashlib.sha256(content).hexdigest())


def _member(content: bytes, suffix: str) -> bytes:
    """One file of a tar archive, read in memory: nothing is extracted."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        name = next((name for name in tar.getnames() if name.endswith("/" + suffix)), suffix)
        file = tar.extractfile(name)
        if file is None:
            raise KeyError(suffix)
        return file.read()


def _is_usable(text: str) -> bool:
    return WORDS[0] <= len(text.split()) <= WORDS[1] and text.isascii() and text.isprintable()


_SUBJECTS = (
    "the film", "the acting", "the story", "the ending", "this camera", "the music", "the battery", "the plot",
    "this player", "the dialogue", "the screen", "the sound", "the second half", "the cast", "the director",
    "the manual", "the picture", "the script",
)  # fmt: skip
_JUDGEMENTS = {
    "brilliant": 2.6, "wonderful": 2.5, "excellent": 2.5, "beautiful": 2.2, "delightful": 2.1, "great": 2.1,
    "charming": 1.7, "good": 1.5, "funny": 1.4, "solid": 1.1, "pleasant": 1.2, "decent": 0.8, "fine": 0.7,
    "acceptable": 0.4, "ordinary": -0.2, "average": 0.1, "predictable": -0.8, "slow": -0.8, "flat": -1.0, "weak": -1.2,
    "dull": -1.4, "clumsy": -1.3, "boring": -1.6, "annoying": -1.7, "bad": -1.8, "poor": -1.7, "ugly": -1.9,
    "terrible": -2.4, "awful": -2.4, "horrible": -2.5, "dreadful": -2.4, "pathetic": -2.2,
}  # fmt: skip
_DEGREES = {"": 1.0, "really ": 1.15, "very ": 1.2, "absolutely ": 1.25, "quite ": 0.9, "somewhat ": 0.6, "not ": -0.5}
_FRAMES = (
    "{} was {}", "i thought {} was {}", "to be honest {} is {}", "{} turned out {} in the end",
    "they told me {} was {}", "for the price {} seems {}", "my friends found that {} was {}",
    "after an hour {} felt {}",
)  # fmt: skip


def generated_texts() -> RatedTexts:
    """Every sentence of a small grammar, with a polarity by rule."""
    texts, polarity = [], []
    for frame in _FRAMES:
        for subject in _SUBJECTS:
            for judgement, strength in _JUDGEMENTS.items():
                for degree, factor in _DEGREES.items():
                    texts.append(frame.format(subject, degree + judgement))
                    polarity.append(float(np.clip(strength * factor, -3, 3)))
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    description = "generated sentences with a polarity by rule (the rated real ones were not downloaded)"
    return RatedTexts(texts, np.array(polarity), description, digest)
