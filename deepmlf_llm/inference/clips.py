"""A clip in, polarity over time out: the clip is read by the very recipe that the model carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepmlf_llm.data.facts import feature_problems
from deepmlf_llm.errors import ConfigError, DataError
from deepmlf_llm.inference.predictions import ClassPrediction, Prediction
from deepmlf_llm.media.asr import Segment, Transcriber
from deepmlf_llm.media.extract import GIVEN, ClipRecord, Extractor
from deepmlf_llm.media.recipe import settings_of

if TYPE_CHECKING:
    from deepmlf_llm.inference.predictor import SentimentPredictor

SPEECH = "speech"
Said = Prediction | ClassPrediction


@dataclass(frozen=True)
class ClipRow:
    """What is said of one span of a clip.

    Attributes:
        start, end: s.
        text: what the model read there; of a transcript without times it is all of it.
        present: what the model had there: "text" and modalities.
        prediction: as of any utterance.
    """

    start: float
    end: float
    text: str
    present: list[str]
    prediction: Said

    def to_dict(self) -> dict[str, Any]:
        told = {"start": self.start, "end": self.end, "text": self.text, "present": self.present}
        return told | self.prediction.to_dict()


@dataclass
class ClipResult:
    """What is said of a clip.

    Attributes:
        clip: name of the file.
        whole: of the whole clip, read as one utterance, as training read its clips.
        rows: of each span, in order.
        record: what the clip says and shows.
        notes: what the user should know, one sentence each.
    """

    clip: str
    whole: ClipRow
    rows: list[ClipRow]
    record: ClipRecord
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {
            "clip": self.clip,
            "status": self.record.status,
            "duration": self.record.duration,
            "text_source": self.record.text_source,
            "whole": self.whole.to_dict(),
            "rows": [row.to_dict() for row in self.rows],
            "segments": [part.to_dict() for part in self.record.segments],
            "seconds": self.record.seconds,
            "notes": self.notes,
        }


class ClipReader:
    """Reads clips for one predictor; its encoders are loaded once.

    Args:
        predictor: of a model whose features were made by ``deepmlf extract-features``.
        encoders: modality -> where its encoder lies now (directory or hub id); default: where it was.
        transcriber: hears words where no text is given; None: nobody listens.
        device: of the encoders.
        allow_damaged: take what can be read of damaged files.

    Raises:
        DataError: the model's features come from elsewhere, or an encoder here is not the one of its training; the
            message names what differs.
    """

    def __init__(
        self,
        predictor: SentimentPredictor,
        encoders: Mapping[str, str] | None = None,
        transcriber: Transcriber | None = None,
        device: str = "cpu",
        allow_damaged: bool = False,
    ) -> None:
        self.predictor = predictor
        trained = predictor.config.modalities
        settings = replace(settings_of(trained, encoders), device=device)
        self.extractor = Extractor(settings, transcriber, None, allow_damaged)
        if problems := feature_problems(trained, self.extractor.facts()):
            raise DataError(f"clips would be read otherwise than those of the training: {'; '.join(problems)}")

    def read(
        self, path: Path | str, text: str | None = None, window: float | str = SPEECH, hop: float | None = None
    ) -> ClipResult:
        """Polarity of a clip, and of its spans.

        Args:
            path: of the file.
            text: its transcript; it wins over what is heard.
            window: "speech": spans of speech; or so many seconds.
            hop: s from one window to the next; default: the window.

        Raises:
            ClipError: the file gives no features; its ``status`` says why.
            DataError: there is nothing in it that the model reads.
            ConfigError: a window that is none.
        """
        check_window(window, hop)
        return self.predict_record(self.extractor.extract(path, text), Path(path).name, window, hop)

    def predict_record(
        self, record: ClipRecord, clip: str, window: float | str = SPEECH, hop: float | None = None
    ) -> ClipResult:
        """The same of a clip that has been read."""
        if not record.features and not record.text:
            raise DataError(f"{clip}: there is nothing in it that the model reads ({record.status}): give its text")
        spans = [(0.0, record.duration, record.text), *_spans(record, window, hop)]
        items, present = [], []
        for start, end, text in spans:
            features = {name: self._cut(name, values, start, end) for name, values in record.features.items()}
            items.append(self.predictor.prepare(text, features))
            present.append([*(["text"] if text.strip() else []), *(name for name in features if len(features[name]))])
        # The whole clip alone: as a file of one utterance is predicted.
        said = [*self.predictor.predict_prepared(items[:1]), *self.predictor.predict_prepared(items[1:])]
        if not all(one.is_finite() for one in said):
            raise DataError(
                f"{clip}: the model's output is not finite, as with features far from those of its training"
            )
        whole, *rows = [
            ClipRow(start, end, text, there, one)
            for (start, end, text), there, one in zip(spans, present, said, strict=True)
        ]
        return ClipResult(clip, whole, rows, record, _notes(record, window))

    def _cut(self, name: str, values: np.ndarray, start: float, end: float) -> np.ndarray:
        rate = self.predictor.config.modalities[name].frame_rate
        first = int(np.floor(start * rate + 1e-6))
        return values[first : max(int(np.ceil(end * rate - 1e-6)), first + 1)]


def check_window(window: float | str, hop: float | None) -> None:
    """Raises ConfigError unless it is "speech" without a hop, or seconds with one or without."""
    if isinstance(window, str):
        if window != SPEECH or hop is not None:
            told = f" with hop {hop:g}" if hop is not None else ""
            raise ConfigError(f"window {window!r}{told}: expected speech, or seconds (with a hop in seconds)")
    elif not 0.2 <= window < float("inf") or not (hop is None or 0.1 <= hop < float("inf")):
        raise ConfigError(f"window {window:g}, hop {hop}: expected 0.2 s and 0.1 s at least")


def _spans(record: ClipRecord, window: float | str, hop: float | None) -> list[tuple[float, float, str]]:
    """Start, end (s) and text of each row."""
    whole = record.text if record.text_source == GIVEN else ""
    if isinstance(window, str):
        if record.segments and record.text_source != GIVEN:
            return [(part.start, min(part.end, record.duration), part.text) for part in record.segments]
        return [(start, end, whole) for start, end in record.speech or [(0.0, record.duration)]]
    step = hop or window
    count = max(int(np.ceil((record.duration - window) / step - 1e-6)), 0) + 1
    starts = [round(k * step, 3) for k in range(count) if k * step < record.duration]
    ends = [round(min(start + window, record.duration), 3) for start in starts]
    return [(a, b, whole or _words(record.segments, a, b)) for a, b in zip(starts, ends, strict=True)]


def _words(segments: list[Segment], start: float, end: float) -> str:
    """The words whose middles lie between two times."""
    words = [word for part in segments for word in part.words]
    return " ".join(word.word for word in words if start <= (word.start + word.end) / 2 < end)


def _notes(record: ClipRecord, window: float | str) -> list[str]:
    notes = []
    if not isinstance(window, str):
        notes.append("windows of fixed length cut through sentences, which training never saw: take rows with care")
    elif record.text_source == GIVEN and len(record.speech) > 1:
        notes.append("the given text has no times: every row reads all of it")
    if record.duration > 60:
        notes.append("a long clip is read as one utterance, of which the beginning counts most: the rows say more")
    if record.damaged_packets:
        notes.append(f"{record.damaged_packets} damaged packets were left out")
    return notes
