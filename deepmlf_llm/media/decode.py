"""Sound and pictures of a file, on one clock, a little at a time: a film of two hours needs no more memory than a clip.

PyAV alone reads them; it brings FFmpeg's libraries with it. What goes wrong in silence there is found here: a file that
was cut off ends early without an error, damaged packets shift all that follows, phones record sideways, a picture may
stand for longer than its neighbours. So samples and frames are placed by their timestamps, never by counting.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from deepmlf_llm.extras import require
from deepmlf_llm.media.status import MISSING, TOO_SHORT, TRUNCATED, UNREADABLE, ClipError

SAMPLE_RATE = 16000
BLOCK_SECONDS = 30.0  # what Whisper's encoder reads at once
SHORTEST = 0.1
_HOLE = SAMPLE_RATE // 50  # samples: a smaller step between timestamps is their rounding
_CUT_SECONDS, _CUT_SHARE = 0.5, 0.02  # a file may end this much before it says it does
_COVER = 0x400  # AV_DISPOSITION_ATTACHED_PIC
_CLOCK = 1_000_000  # ticks a second of a container's own times


@dataclass(frozen=True)
class Probe:
    """What a file says and holds.

    Attributes:
        path: of the file.
        duration: s, as the file says, or up to its last packet where it does not say.
        start: s, the time at which its clock begins; all other times count from there.
        audio_end, video_end: s, where the last packet of each ends; None: there is no such stream.
    """

    path: Path
    duration: float
    start: float
    audio_end: float | None
    video_end: float | None

    @property
    def end(self) -> float:
        """Where the last packet ends (s)."""
        return max(self.audio_end or 0.0, self.video_end or 0.0)

    @property
    def truncated(self) -> bool:
        """Whether the file ends before it says it does."""
        return self.end < self.duration - max(_CUT_SECONDS, _CUT_SHARE * self.duration)

    def check(self, allow_damaged: bool = False) -> None:
        """Raises ClipError for a file that is cut off, or has next to nothing in it."""
        if self.duration < SHORTEST:
            raise ClipError(TOO_SHORT, f"{self.path}: lasts {self.duration:.2f} s, expected {SHORTEST} s at least")
        if self.truncated and not allow_damaged:
            raise ClipError(
                TRUNCATED,
                f"{self.path}: is cut off: {self.end:.2f} s of {self.duration:.2f} s are there; copy it again, or "
                "allow damaged files to use what is there",
            )


@dataclass
class Damage:
    """Packets that could not be decoded; what they held is silence, or the frame before."""

    packets: int = 0


def probe(path: Path | str) -> Probe:
    """Opens a file and walks over its packets without decoding them.

    Raises:
        ClipError: missing, or nothing with sound or pictures.
        MissingPackageError: PyAV is not installed.
    """
    path = Path(path)
    with _opened(path) as container:
        streams = {kind: _stream(container, kind) for kind in ("audio", "video")}
        chosen = {kind: stream for kind, stream in streams.items() if stream is not None}
        if not chosen:
            raise ClipError(UNREADABLE, f"{path}: holds neither sound nor pictures")
        ends = dict.fromkeys(chosen, 0.0)
        start = (container.start_time or 0) / _CLOCK
        for packet in _packets(container, list(chosen.values()), Damage()):
            if packet.pts is not None:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base) - start
                kind = packet.stream.type
                ends[kind] = max(ends[kind], end)
        said = None if _guesses_duration(container, path) else container.duration
        duration = said / _CLOCK if said else max(ends.values())
    return Probe(path, duration, start, ends.get("audio"), ends.get("video"))


def _guesses_duration(container: Any, path: Path) -> bool:
    """Whether the file says nothing of its length, so that FFmpeg guesses it from the bit rate of its beginning: raw
    AAC and AC-3, and MP3 without the tag that counts its frames."""
    if container.format.name != "mp3":
        return container.format.name in ("aac", "ac3", "eac3")
    with path.open("rb") as file:
        head = file.read(10)
        if head.startswith(b"ID3"):  # its size: four bytes of seven bits
            file.seek(10 + sum(byte << 7 * (3 - i) for i, byte in enumerate(head[6:10])))
        else:
            file.seek(0)
        first = file.read(4096)
    return not any(tag in first for tag in (b"Xing", b"Info", b"VBRI"))


def audio_blocks(probed: Probe, damage: Damage | None = None, seconds: float = BLOCK_SECONDS) -> Iterator[np.ndarray]:
    """The sound as 16 kHz mono, block by block; every sample is where its timestamp says, holes are silent.

    Args:
        probed: the file; it must have sound.
        damage: takes the number of damaged packets.
        seconds: length of a block; the last one is shorter.

    Yields:
        float32 [samples] in [-1, 1].
    """
    size = round(seconds * SAMPLE_RATE)
    held: list[np.ndarray] = []
    count = 0
    for samples in _cut(_samples(probed, damage or Damage()), probed.duration):
        held.append(samples)
        count += len(samples)
        while count >= size:
            whole = np.concatenate(held)
            yield whole[:size]
            held, count = [whole[size:]], count - size
    if count:
        yield np.concatenate(held)


def audio(probed: Probe, damage: Damage | None = None) -> np.ndarray:
    """All of the sound at once, float32 [samples]: for clips."""
    blocks = list(audio_blocks(probed, damage))
    return np.concatenate(blocks) if blocks else np.empty(0, dtype=np.float32)


def frames(probed: Probe, fps: float, damage: Damage | None = None) -> Iterator[tuple[float, np.ndarray]]:
    """Pictures at the times k / fps: the last one shown by then, upright.

    A file whose first picture comes late shows that one from the beginning.

    Args:
        probed: the file; it must have pictures.
        fps: pictures a second (Hz).
        damage: takes the number of damaged packets.

    Yields:
        Time (s), picture [height x width x 3] uint8 RGB.
    """
    held: Any = None
    shown: np.ndarray | None = None  # the picture of `held`, once it is needed
    k = 0
    end = 0.0
    with _opened(probed.path) as container:
        stream = _stream(container, "video")
        stream.thread_type = "AUTO"
        for frame in _decoded(container, stream, damage or Damage()):
            if frame.time is None:
                continue
            time = frame.time - probed.start
            while held is not None and k / fps < time - 1e-6:
                shown = _upright(held) if shown is None else shown
                yield k / fps, shown
                k += 1
            held, shown = frame, None
            end = time + _shown_for(frame, stream)
        end = min(end, probed.duration)
        while held is not None and (k / fps < end - 1e-3 or not k):
            shown = _upright(held) if shown is None else shown
            yield k / fps, shown
            k += 1


def _upright(frame: Any) -> np.ndarray:
    picture = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(picture, frame.rotation // 90)) if frame.rotation else picture


def _shown_for(frame: Any, stream: Any) -> float:
    """How long the last picture stands (s)."""
    if frame.duration and frame.time_base:
        return float(frame.duration * frame.time_base)
    return 1 / float(stream.average_rate) if stream.average_rate else 0.0


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The container of a file; whatever the system or FFmpeg says against it is a ClipError."""
    av = require("av", "reading clips")
    try:
        if path.is_file() and not path.stat().st_size:
            raise ClipError(UNREADABLE, f"{path}: is empty (0 bytes)")
        container = av.open(str(path), metadata_errors="replace")
    except FileNotFoundError:
        raise ClipError(MISSING, f"{path}: no such file") from None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        told = getattr(error, "strerror", None) or str(error)
        raise ClipError(UNREADABLE, f"{path}: cannot be read as sound or video ({told})") from None
    with container:
        yield container


def _stream(container: Any, kind: str) -> Any:
    """The first stream of a kind that can be decoded, None where there is none; a cover picture is no video."""
    for stream in getattr(container.streams, kind):
        if stream.codec_context is None:
            continue
        if kind == "video" and int(getattr(stream, "disposition", 0)) & _COVER:
            continue
        return stream
    return None


def _packets(container: Any, streams: list[Any], damage: Damage) -> Iterator[Any]:
    """Packets up to the end of the file, or to where nothing more can be told apart."""
    av = require("av", "reading clips")
    packets = container.demux(streams)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.error.FFmpegError:
            damage.packets += 1
            return
        yield packet


def _decoded(container: Any, stream: Any, damage: Damage) -> Iterator[Any]:
    av = require("av", "reading clips")
    for packet in _packets(container, [stream], damage):
        try:
            decoded = packet.decode()
        except av.error.FFmpegError:
            damage.packets += 1
            continue
        yield from decoded


def _samples(probed: Probe, damage: Damage) -> Iterator[tuple[int, np.ndarray]]:
    """Place of the first sample, and samples, as they come out of the decoder."""
    av = require("av", "reading clips")
    with _opened(probed.path) as container:
        resampler: Any = None
        form: tuple[Any, ...] = ()
        place = expected = 0.0
        for frame in chain(_decoded(container, _stream(container, "audio"), damage), (None,)):
            if frame is not None:
                stated = expected if frame.time is None else (frame.time - probed.start) * SAMPLE_RATE
                now = (frame.format.name, frame.layout.name, frame.sample_rate)
            if resampler is not None and (frame is None or now != form or abs(stated - expected) > _HOLE):
                for out in resampler.resample(None):
                    yield round(place), _mono(out)
                    place += out.samples
                resampler = None
            if frame is None:
                return
            if resampler is None:
                resampler = av.AudioResampler(format="flt", rate=SAMPLE_RATE)
                form, place, expected = now, stated, stated
            for out in resampler.resample(frame):
                yield round(place), _mono(out)
                place += out.samples
            expected += frame.samples * SAMPLE_RATE / frame.sample_rate


def _mono(frame: Any) -> np.ndarray:
    """The mean of a frame's channels: the library's own mono of floats is louder by 3 dB, and its planes of eight
    channels or more end the process."""
    mean: np.ndarray = frame.to_ndarray().reshape(-1, frame.layout.nb_channels).mean(1)
    return mean


def _cut(placed: Iterator[tuple[int, np.ndarray]], end: float) -> Iterator[np.ndarray]:
    """Samples from 0 to ``end`` (s) without holes and overlaps."""
    position = 0
    last = round(end * SAMPLE_RATE)
    for place, samples in placed:
        if place > position:
            silence = min(place, last) - position
            for start in range(0, silence, SAMPLE_RATE):  # a hole of hours is no array of hours
                yield np.zeros(min(SAMPLE_RATE, silence - start), dtype=np.float32)
            position += max(silence, 0)
        kept = samples[position - place : max(last - place, 0)] if place <= position else samples[:0]
        if len(kept):
            yield np.ascontiguousarray(kept, dtype=np.float32)
            position += len(kept)
