"""Clips of nobody: rated sentences, spoken by a program, by a face that is drawn; real MP4 files.

Words, voice and face each carry a part of the polarity: for half of the clips the words do not mean what they say, and
either the voice (its pitch, range and pace) or the face (its mouth and brows) tells what is meant. Voices and faces are
SYNTHETIC: a model that learns them has learnt nothing of people.
"""

from __future__ import annotations

import csv
import ctypes
import io
import shutil
import subprocess
import tempfile
import wave
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

RATE = 16000
FPS, WIDTH, HEIGHT = 10, 192, 144
CONFLICTS = 0.5
WORDS = (4, 11)
Voice = Callable[[str, float, int], np.ndarray]
"""Text, mood in [-1, 1], number of the speaker -> samples at 16 kHz."""


@dataclass(frozen=True)
class Scene:
    """What is said, and how: the polarity of the words, and what the voice and the face add to it."""

    name: str
    split: str
    text: str
    words: float
    voice: float
    face: float
    speaker: int

    @property
    def label(self) -> float:
        return round(float(np.clip(self.words + self.voice + self.face, -3, 3)), 3)


def write_scenes(directory: Path, sizes: dict[str, int], seed: int, voice: Voice) -> list[Scene]:
    """``label.csv`` and ``Raw/<video>/<clip>.mp4``, as MMSA has them; what is there already is kept."""
    scenes = choose_scenes(sizes, seed)
    for scene in scenes:
        path = directory / "Raw" / scene.split / f"{scene.name}.mp4"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f"partial_{path.name}")
            write_scene(aside, scene, voice)
            aside.rename(path)
    with (directory / "label.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["video_id", "clip_id", "text", "label", "label_T", "mode"])
        for scene in scenes:
            writer.writerow([scene.split, scene.name, scene.text, scene.label, round(scene.words, 3), scene.split])
    return scenes


def choose_scenes(sizes: dict[str, int], seed: int) -> list[Scene]:
    """Sentences over the whole scale; the same seed gives the same."""
    from deepmlf_llm.data.demo_texts import rated_texts

    rng = np.random.default_rng(seed)
    rated = rated_texts()
    short = [i for i, text in enumerate(rated.texts) if WORDS[0] <= len(text.split()) <= WORDS[1]]
    order = sorted(rng.permutation(short), key=lambda i: round(float(rated.polarity[i])))
    total = sum(sizes.values())
    spread = [order[k] for k in np.linspace(0, len(order) - 1, total).round().astype(int)]
    chosen = rng.permutation(spread)
    scenes: list[Scene] = []
    for split, size in sizes.items():
        for number in range(size):
            index = int(chosen[len(scenes)])
            words = float(np.clip(rated.polarity[index], -3, 3))
            turn = -words * rng.uniform(0.7, 1.1) - words if abs(words) > 0.6 else rng.choice([-1, 1]) * 2.0
            turn = turn if rng.random() < CONFLICTS else 0.0
            heard = rng.random() < 0.5
            parts = (turn, 0.0) if heard else (0.0, turn)
            text = rated.texts[index]
            scenes.append(Scene(f"{split}_{number:03d}", split, text, words, *parts, int(rng.integers(0, 4))))
    return scenes


def write_scene(path: Path, scene: Scene, voice: Voice) -> None:
    """One MP4: H.264 (or MPEG-4 where that encoder is missing) and AAC."""
    import av

    samples = voice(scene.text, scene.voice / 6, scene.speaker)
    samples = np.concatenate([np.zeros(RATE // 5, np.float32), samples, np.zeros(RATE // 5, np.float32)])
    count = round(len(samples) / RATE * FPS)
    with av.open(str(path), "w") as container:
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        shown = container.add_stream(codec, rate=FPS)
        shown.width, shown.height, shown.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        heard = container.add_stream("aac", rate=RATE, layout="mono")
        loud = np.abs(samples)
        for k in range(count):
            span = loud[k * RATE // FPS : (k + 1) * RATE // FPS]
            picture = draw_face(scene.face / 6, min(float(span.mean()) * 6, 1.0), scene.speaker, k)
            container.mux(shown.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(shown.encode(None))
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=RATE, frame_size=1024)
        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="flt", layout="mono")
        frame.sample_rate, frame.pts = RATE, 0
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(heard.encode(piece))
        container.mux(heard.encode(None))


def draw_face(mood: float, openness: float, speaker: int, frame: int) -> np.ndarray:
    """A head whose mouth bends and whose brows tilt with the mood in [-1, 1]; [height x width x 3] uint8."""
    from PIL import Image, ImageDraw

    skin = [(240, 200, 170), (200, 150, 110), (150, 105, 75), (250, 220, 195)][speaker]
    image = Image.new(
        "RGB", (WIDTH, HEIGHT), [(205, 215, 230), (225, 220, 205), (200, 225, 205), (225, 205, 215)][speaker]
    )
    draw: Any = ImageDraw.Draw(image)
    x = WIDTH / 2 + 3 * np.sin(frame / 4)
    y = HEIGHT / 2 + 2 * np.cos(frame / 5)
    draw.ellipse([x - 46, y - 58, x + 46, y + 58], fill=skin, outline=(60, 50, 40), width=2)
    for side in (-1, 1):
        eye = x + 18 * side
        draw.ellipse([eye - 7, y - 18, eye + 7, y - 8], fill="white", outline=(40, 40, 40))
        draw.ellipse([eye - 3, y - 16, eye + 3, y - 10], fill=(40, 40, 40))
        inner, outer = (eye - 9 * side, y - 28 - 9 * mood), (eye + 9 * side, y - 28 + 5 * mood)
        draw.line([inner, outer], fill=(50, 35, 25), width=4)
    draw.line([(x, y - 4), (x - 4, y + 10), (x + 3, y + 10)], fill=(90, 70, 60), width=2)
    across = np.linspace(-1, 1, 13)
    bend = 16 * mood * (1 - across**2) + y + 28 - 6 * mood
    gap = 1.5 + 7 * openness * (1 - across**2)
    lips = [(x + 22 * a, b - g) for a, b, g in zip(across, bend, gap, strict=True)]
    lips += [(x + 22 * a, b + g) for a, b, g in zip(across[::-1], bend[::-1], gap[::-1], strict=True)]
    draw.polygon(lips, fill=(150, 50, 60), outline=(90, 30, 40))
    return np.asarray(image)


def find_voice() -> tuple[Voice, str]:
    """What speaks here, and what it is: espeak-ng as a program, as a package, or a hum."""
    if program := shutil.which("espeak-ng") or shutil.which("espeak"):
        return partial(_by_program, program), f"the program {Path(program).name}"
    try:
        return Library().speak, "espeak-ng of the package espeakng-loader"
    except (ImportError, OSError):
        return hum, "a hum without words (neither espeak-ng nor the package espeakng-loader is here)"


def _manner(mood: float, speaker: int) -> dict[str, int]:
    """espeak's parameters: a good mood is higher, livelier and faster."""
    return {
        "pitch": round(38 + 10 * (speaker % 2) + 34 * mood),
        "range": round(50 + 45 * mood),
        "rate": round(165 + 30 * mood),
        "volume": round(100 + 20 * mood),
    }


def _by_program(program: str, text: str, mood: float, speaker: int) -> np.ndarray:
    manner = _manner(mood, speaker)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "said.wav"
        options = ["-v", f"en+m{speaker + 1}", "-p", manner["pitch"], "-s", manner["rate"], "-a", manner["volume"]]
        subprocess.run([program, *map(str, options), "-w", str(file), text], check=True, capture_output=True)
        with wave.open(io.BytesIO(file.read_bytes())) as sound:
            samples = np.frombuffer(sound.readframes(sound.getnframes()), dtype=np.int16)
            return _at_16_khz(samples.astype(np.float32) / 32768, sound.getframerate())


class Library:
    """espeak-ng in this process, through ctypes; raises ImportError or OSError where it is not there."""

    def __init__(self) -> None:
        import espeakng_loader

        self.library: Any = ctypes.cdll.LoadLibrary(espeakng_loader.get_library_path())
        data = str(Path(espeakng_loader.get_data_path()).parent).encode()
        self.rate = self.library.espeak_Initialize(2, 500, data, 0)  # 2: give the samples back
        if self.rate <= 0:
            raise OSError("espeak-ng found no data")
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self.heard: list[np.ndarray] = []
        self.callback = kind(self._take)
        self.library.espeak_SetSynthCallback(self.callback)

    def _take(self, samples: Any, count: int, _: Any) -> int:
        if samples and count:
            self.heard.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def speak(self, text: str, mood: float, speaker: int) -> np.ndarray:
        manner = _manner(mood, speaker)
        self.library.espeak_SetVoiceByName(f"en+m{speaker + 1}".encode())
        for number, name in ((1, "rate"), (2, "volume"), (3, "pitch"), (4, "range")):
            self.library.espeak_SetParameter(number, manner[name], 0)
        self.heard.clear()
        content = text.encode("utf-8") + b"\0"
        self.library.espeak_Synth(content, len(content), 0, 0, 0, 1, None, None)  # 1: UTF-8
        self.library.espeak_Synchronize()
        samples = np.concatenate(self.heard) if self.heard else np.zeros(self.rate // 2, np.int16)
        return _at_16_khz(samples.astype(np.float32) / 32768, self.rate)


def hum(text: str, mood: float, speaker: int) -> np.ndarray:
    """A syllable for each vowel, in the pitch of the mood: for machines without a voice."""
    count = max(sum(letter in "aeiouy" for letter in text.lower()), 2)
    pace = int(RATE * (0.16 - 0.03 * mood))
    t = np.arange(pace) / RATE
    shape = np.hanning(pace)
    said = []
    for k in range(count):
        pitch = (110 + 25 * (speaker % 2)) * 2 ** (0.9 * mood + 0.15 * mood * np.sin(1.3 * k))
        said.append(sum(np.sin(2 * np.pi * pitch * h * t) / h for h in range(1, 12)) * shape)
    return (0.2 * np.concatenate(said)).astype(np.float32)


def _at_16_khz(samples: np.ndarray, rate: int) -> np.ndarray:
    if rate == RATE:
        return samples
    from scipy.signal import resample_poly

    return resample_poly(samples, RATE, rate).astype(np.float32)
