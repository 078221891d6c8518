"""Small clips for tests, encoded by PyAV: no program and no download is needed."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

RATE = 16000
Picture = Callable[[float], np.ndarray]


def tone(seconds: float, hertz: float = 200.0, level: float = 0.3) -> np.ndarray:
    """A harmonic tone that sounds a little like a voice, float32 [samples] at 16 kHz."""
    t = np.arange(round(seconds * RATE)) / RATE
    wave = sum(np.sin(2 * np.pi * hertz * k * t) / k for k in range(1, 9))
    return (level * wave / np.abs(wave).max()).astype(np.float32) if len(t) else np.empty(0, np.float32)


def click(seconds: float, at: float) -> np.ndarray:
    """Silence with one short burst at a time (s)."""
    samples = np.zeros(round(seconds * RATE), np.float32)
    start = round(at * RATE)
    samples[start : start + 80] = 0.9 * (-1.0) ** np.arange(80)
    return samples


def grey(level: float = 0.5, width: int = 64, height: int = 48) -> Picture:
    """The same picture all the time."""
    return lambda time: np.full((height, width, 3), round(255 * level), np.uint8)


def flash(at: float, width: int = 64, height: int = 48) -> Picture:
    """Black before a time (s), white from it on."""
    return lambda time: np.full((height, width, 3), 255 if time >= at - 1e-6 else 0, np.uint8)


def write_clip(
    path: Path,
    seconds: float = 1.0,
    sound: np.ndarray | None = None,
    picture: Picture | None = None,
    fps: int = 10,
    times: list[float] | None = None,
    video: str = "mpeg4",
    audio: str = "aac",
    options: dict[str, str] | None = None,
) -> Path:
    """Writes a clip; the container is what the name's ending says.

    Args:
        sound: 16 kHz mono; None: no such stream.
        picture: of each time; None: no such stream.
        times: of the pictures (s): a variable frame rate; default: every 1 / fps.
        options: of the container, such as ``{"movflags": "faststart"}``.
    """
    import av

    with av.open(str(path), "w", options=options or {}) as container:
        shown = heard = None
        if picture is not None:
            height, width = picture(0.0).shape[:2]
            shown = container.add_stream(video, rate=fps)
            shown.width, shown.height, shown.pix_fmt = width, height, "yuv420p"
            if times is not None:
                shown.codec_context.time_base = _thousandth()
        if sound is not None:
            heard = container.add_stream(audio, rate=RATE, layout="mono")
        if shown is not None and picture is not None:
            for k, time in enumerate(times or [k / fps for k in range(round(seconds * fps))]):
                frame = av.VideoFrame.from_ndarray(picture(time), format="rgb24")
                frame.pts = k if times is None else round(time * 1000)
                if times is not None:
                    frame.time_base = _thousandth()
                container.mux(shown.encode(frame))
            container.mux(shown.encode(None))
        if heard is not None and sound is not None:
            _write_sound(container, heard, sound)
    return path


def _thousandth():
    from fractions import Fraction

    return Fraction(1, 1000)


def _write_sound(container, stream, sound: np.ndarray) -> None:
    import av

    resampler = av.AudioResampler(
        format=stream.codec_context.format, layout="mono", rate=RATE, frame_size=stream.codec_context.frame_size or 1024
    )
    frame = av.AudioFrame.from_ndarray(sound[None].astype(np.float32), format="flt", layout="mono")
    frame.sample_rate, frame.pts = RATE, 0
    for piece in [*resampler.resample(frame), *resampler.resample(None)]:
        container.mux(stream.encode(piece))
    container.mux(stream.encode(None))


def turn_sideways(path: Path) -> Path:
    """Sets the matrix of an MP4's video track to a quarter turn, as a phone held upright does."""
    content = path.read_bytes()
    whole = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    turned = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
    place = content.index(whole, content.index(b"tkhd"))
    path.write_bytes(content[:place] + turned + content[place + len(whole) :])
    return path


def cut(path: Path, share: float = 0.5) -> Path:
    """Keeps the first share of a file's bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: round(len(content) * share)])
    return path


def flip(path: Path, count: int = 60, begin: float = 0.2, end: float = 0.9, seed: int = 0) -> Path:
    """Flips bytes inside a file."""
    rng = np.random.default_rng(seed)
    content = bytearray(path.read_bytes())
    for place in rng.integers(round(begin * len(content)), round(end * len(content)), count):
        content[place] ^= 0xFF
    path.write_bytes(bytes(content))
    return path


class Hears:
    """A transcriber that always hears the same."""

    def __init__(self, text: str) -> None:
        self.text, self.calls = text, 0
        self.facts = {"transcriber": "test", "text": text}

    def transcribe(self, samples: np.ndarray) -> list:
        from deepmlf_llm.media.asr import Segment, Word

        self.calls += 1
        if not self.text:
            return []
        end = len(samples) / RATE
        words = self.text.split()
        step = end / len(words)
        timed = [Word(k * step, (k + 1) * step, word, 0.9) for k, word in enumerate(words)]
        return [Segment(0.0, end, self.text, timed)]
