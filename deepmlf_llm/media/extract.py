"""One clip -> words, features and a status. Models are loaded once, for any number of clips."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deepmlf_llm.media.asr import Segment, Transcriber, transcribe_blocks
from deepmlf_llm.media.decode import SAMPLE_RATE, Damage, Probe, audio_blocks, frames, probe
from deepmlf_llm.media.faces import FaceTrack, open_detector
from deepmlf_llm.media.hearing import open_audio_encoder
from deepmlf_llm.media.recipe import AUDIO, KIND, VERSION, VISION, RecipeSettings
from deepmlf_llm.media.seeing import BATCH, open_vision_encoder, resized
from deepmlf_llm.media.speech import speech_spans
from deepmlf_llm.media.status import CORRUPT, TOO_LONG, ClipError, status_of
from deepmlf_llm.media.timeline import TimeBins

GIVEN, HEARD, NONE = "given", "heard", "none"


@dataclass
class ClipRecord:
    """What a clip says and shows.

    Attributes:
        status: one of :data:`deepmlf_llm.media.status.GOOD`.
        duration: s.
        text: transcript; empty: there is none.
        text_source: "given", "heard" or "none".
        segments: what was heard, with times; empty: nothing, or nobody listened.
        speech: spans (s) in which it is not quiet; empty without sound.
        features: modality -> float32 [t x d]; absent ones are not in it.
        face_found: of each vision frame; None: nothing looked for faces.
        absent: what the clip lacks: audio, video, speech, face.
        damaged_packets: that were left out.
        seconds: what each stage took.
    """

    status: str
    duration: float
    text: str = ""
    text_source: str = NONE
    segments: list[Segment] = field(default_factory=list)
    speech: list[tuple[float, float]] = field(default_factory=list)
    features: dict[str, np.ndarray] = field(default_factory=dict)
    face_found: np.ndarray | None = None
    absent: list[str] = field(default_factory=list)
    damaged_packets: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """All but the arrays."""
        told = {key: value for key, value in self.__dict__.items() if key not in ("features", "face_found", "segments")}
        told["segments"] = [asdict(part) for part in self.segments]
        return json.dumps(told, ensure_ascii=False)


class Extractor:
    """Reads clips by one recipe.

    Args:
        settings: what is made of them.
        transcriber: hears words where no text is given; None: nobody listens.
        longest: s; longer clips are refused; None: any length.
        allow_damaged: take files that are cut off or have damaged packets, as far as they can be read.

    Raises:
        ConfigError, DataError, MissingPackageError: an encoder that cannot be had.
    """

    def __init__(
        self,
        settings: RecipeSettings,
        transcriber: Transcriber | None = None,
        longest: float | None = None,
        allow_damaged: bool = False,
    ) -> None:
        settings.check()
        self.settings, self.transcriber = settings, transcriber
        self.longest, self.allow_damaged = longest, allow_damaged
        audio, vision, device = settings.audio, settings.vision, settings.device
        self.hearing = open_audio_encoder(audio.encoder, audio.layer, device) if audio else None
        self.seeing = open_vision_encoder(vision.encoder, vision.layer, device) if vision else None
        self.detector = open_detector(vision.face) if vision else None

    def facts(self) -> dict[str, dict[str, Any]]:
        """What is made of a clip, as manifests and adapters have it: modality -> dim, frame_rate, features,
        provenance."""
        found: dict[str, dict[str, Any]] = {}
        kind = {"kind": KIND, "version": VERSION}
        if self.settings.audio and self.hearing:
            made = {**kind, **self.hearing.facts, "sample_rate": SAMPLE_RATE, "pooled": "mean"}
            found[AUDIO] = _facts(self.hearing.dim, self.settings.audio.rate, made, self.hearing.place)
        if (vision := self.settings.vision) and self.seeing:
            made = {**kind, **self.seeing.facts, "face": vision.face, "margin": vision.margin, "resized": "bicubic"}
            made |= self.detector.facts if self.detector else {}
            columns = self.seeing.dim + (self.detector is not None)
            found[VISION] = _facts(columns, vision.fps, made, self.seeing.place)
        return found

    def extract(self, path: Path | str, text: str | None = None, listen: bool | None = None) -> ClipRecord:
        """Words and features of one clip.

        Args:
            path: of the file.
            text: its transcript; it wins over what is heard.
            listen: whether the transcriber hears it; default: where no text is given.

        Raises:
            ClipError: the file gives no features; its ``status`` says why in a word.
        """
        seconds: dict[str, float] = {}
        with _timed(seconds, "open"):
            probed = probe(path)
            probed.check(self.allow_damaged)
            if self.longest is not None and probed.duration > self.longest:
                raise ClipError(
                    TOO_LONG, f"{path}: lasts {probed.duration:.0f} s, longer than the {self.longest:g} s allowed"
                )
        record = ClipRecord("", round(probed.duration, 3), seconds=seconds)
        damage = Damage()
        given = bool(text and text.strip())
        if probed.audio_end is not None:
            self._hear(probed, record, damage, listen=not given if listen is None else listen)
            if not given and self.transcriber is not None and not record.segments and listen is not False:
                record.absent.append("speech")
        elif self.hearing or self.transcriber:
            record.absent.append("audio")
        if self.seeing:
            with _timed(seconds, "vision"):
                self._see(probed, record, damage)
        self._set_text(record, text)
        record.damaged_packets = damage.packets
        if damage.packets and not self.allow_damaged:
            raise ClipError(CORRUPT, f"{path}: {damage.packets} damaged packets; copy it again, or allow damaged files")
        for name, values in record.features.items():
            if not np.isfinite(values).all():
                raise ClipError(CORRUPT, f"{path}: its {name} features are not all finite numbers")
        order = ("audio", "video", "speech", "face")
        record.absent.sort(key=order.index)
        record.status = status_of(record.absent)
        return record

    def _hear(self, probed: Probe, record: ClipRecord, damage: Damage, listen: bool) -> None:
        with _timed(record.seconds, "decode_audio"):
            record.speech = speech_spans(audio_blocks(probed, damage))
        if self.hearing and self.settings.audio:
            with _timed(record.seconds, "audio"):
                bins, counted = TimeBins(self.settings.audio.rate), _Counted(audio_blocks(probed))
                for times, values in self.hearing.encode(counted):
                    bins.add(times, values)
                values = bins.frames(counted.samples / SAMPLE_RATE)
                if len(values):
                    record.features[AUDIO] = values
                else:
                    record.absent.append("audio")
        if self.transcriber is not None and listen:
            with _timed(record.seconds, "transcription"):
                record.segments = list(transcribe_blocks(self.transcriber, audio_blocks(probed)))

    def _see(self, probed: Probe, record: ClipRecord, damage: Damage) -> None:
        vision, seeing = self.settings.vision, self.seeing
        if vision is None or seeing is None or probed.video_end is None:
            record.absent.append("video")
            return
        track = FaceTrack(self.detector, vision.margin)
        squares: list[np.ndarray] = []
        flags: list[bool] = []
        found: list[np.ndarray] = []
        for _, picture in frames(probed, vision.fps, damage):
            square, has_face = track.cut(picture)
            squares.append(resized(square, seeing.side))
            flags.append(has_face)
            if len(squares) == BATCH:
                found.append(seeing.encode(squares))
                squares = []
        if squares:
            found.append(seeing.encode(squares))
        if not found:
            record.absent.append("video")
            return
        values = np.concatenate(found)
        if self.detector is not None:
            record.face_found = np.array(flags)
            if not any(flags):
                record.absent.append("face")
                return
            values = np.concatenate([values, record.face_found[:, None].astype(np.float32)], axis=1)
        record.features[VISION] = values

    def _set_text(self, record: ClipRecord, given: str | None) -> None:
        if given and given.strip():
            record.text, record.text_source = given, GIVEN
        elif record.segments:
            record.text, record.text_source = " ".join(part.text for part in record.segments), HEARD


class _Counted:
    """Blocks, and how many samples have gone by."""

    def __init__(self, blocks: Iterator[np.ndarray]) -> None:
        self._blocks = blocks
        self.samples = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for block in self._blocks:
            self.samples += len(block)
            yield block


def _facts(dim: int, rate: float, made: dict[str, Any], place: str) -> dict[str, Any]:
    provenance = {"encoder": place} if place else {}
    return {"dim": dim, "frame_rate": float(rate), "features": made, "provenance": provenance}


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = round(seconds.get(stage, 0.0) + time.perf_counter() - start, 4)
