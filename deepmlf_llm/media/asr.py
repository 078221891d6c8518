"""Speech to text with the time of every word, or none. No speech gives no words, never an invented sentence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from deepmlf_llm.errors import ConfigError
from deepmlf_llm.extras import require
from deepmlf_llm.media.decode import SAMPLE_RATE
from deepmlf_llm.media.whisper_ct2 import WHISPER_BASE, whisper_base_ct2

_PIECE_SECONDS = 300  # of a long recording that are read at once
_QUIET_SECONDS, _LOOK_SECONDS = 0.2, 10  # a piece ends in the quietest so long, of its last so many


@dataclass(frozen=True)
class Word:
    """A word and when it was said (s)."""

    start: float
    end: float
    word: str
    probability: float


@dataclass(frozen=True)
class Segment:
    """Speech between two pauses.

    Attributes:
        start, end: s.
        text: what was said.
        words: with their times.
        no_speech: probability that nobody spoke.
        log_probability: mean over the tokens.
    """

    start: float
    end: float
    text: str
    words: list[Word] = field(default_factory=list)
    no_speech: float = 0.0
    log_probability: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Segment:
        return cls(**{**values, "words": [Word(**word) for word in values["words"]]})


class Transcriber(Protocol):
    """Writes down what is said.

    Attributes:
        facts: which model, as a record notes it.
    """

    facts: dict[str, Any]

    def transcribe(self, samples: np.ndarray) -> list[Segment]:
        """Segments of 16 kHz mono samples, in order; none where nobody speaks."""


class FasterWhisper:
    """Whisper run by CTranslate2: greedy, behind a detector of speech, without memory of what it wrote before.

    Args:
        model: ``"whisper-base"`` (packaged), a directory, or a name that faster-whisper can fetch.
        language: its code; ``"auto"``: heard from the first 30 s.
        device: "cpu" or "cuda".
        threads: of the CPU; 0: as many as it likes.

    Raises:
        MissingPackageError: faster-whisper, or the packaged model, is not installed.
        ConfigError: nothing of that name.
    """

    def __init__(
        self, model: str = WHISPER_BASE, language: str = "auto", device: str = "cpu", threads: int = 0
    ) -> None:
        library = require("faster_whisper", "speech to text")
        place = str(whisper_base_ct2()) if model == WHISPER_BASE else model
        try:
            self.model = library.WhisperModel(
                place,
                device=device,
                compute_type="int8" if device == "cpu" else "float16",
                cpu_threads=threads,
                local_files_only=Path(place).is_dir(),
            )
        except (OSError, RuntimeError, ValueError) as error:
            told = " ".join(str(error).split())[:200]
            raise ConfigError(f"speech to text: {model!r} cannot be loaded ({told})") from None
        self.language = None if language == "auto" else language
        self.facts: dict[str, Any] = {"transcriber": "faster-whisper", "model": model, "language": language}

    def transcribe(self, samples: np.ndarray) -> list[Segment]:
        if len(samples) < SAMPLE_RATE // 10:
            return []
        said, _ = self.model.transcribe(
            samples,
            language=self.language,
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            vad_filter=True,
            word_timestamps=True,
        )
        return [
            Segment(
                round(part.start, 3),
                round(part.end, 3),
                part.text.strip(),
                [
                    Word(round(w.start, 3), round(w.end, 3), w.word.strip(), round(w.probability, 4))
                    for w in part.words or ()
                ],
                round(part.no_speech_prob, 4),
                round(part.avg_logprob, 4),
            )
            for part in said
            if part.text.strip()
        ]


def transcribe_blocks(transcriber: Transcriber, blocks: Iterable[np.ndarray]) -> Iterator[Segment]:
    """Segments of a recording of any length, read in pieces of minutes that end where it is quiet."""
    for start, piece in _pieces(blocks):
        for part in transcriber.transcribe(piece):
            shift = start / SAMPLE_RATE
            words = [
                Word(round(w.start + shift, 3), round(w.end + shift, 3), w.word, w.probability) for w in part.words
            ]
            yield Segment(
                round(part.start + shift, 3),
                round(part.end + shift, 3),
                part.text,
                words,
                part.no_speech,
                part.log_probability,
            )


def _pieces(blocks: Iterable[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """First sample of each piece, and its samples."""
    longest = _PIECE_SECONDS * SAMPLE_RATE
    held: list[np.ndarray] = []
    count = start = 0
    for block in blocks:
        held.append(block)
        count += len(block)
        if count >= longest:
            whole = np.concatenate(held)
            cut = _quietest(whole[:longest])
            yield start, whole[:cut]
            start, held, count = start + cut, [whole[cut:]], count - cut
    if count:
        yield start, np.concatenate(held)


def _quietest(samples: np.ndarray) -> int:
    """The middle of the quietest moment among the last seconds."""
    length = round(_QUIET_SECONDS * SAMPLE_RATE)
    first = max(len(samples) - _LOOK_SECONDS * SAMPLE_RATE, 0)
    windows = samples[first : first + (len(samples) - first) // length * length].reshape(-1, length)
    return first + int(np.argmin((windows.astype(np.float64) ** 2).sum(1))) * length + length // 2
