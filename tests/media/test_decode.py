"""Mirrors ``media/decode.py``: every kind of file that users bring, and where its sound and pictures lie in time."""

from __future__ import annotations

import subprocess
import sys
import wave
from types import SimpleNamespace

import numpy as np
import pytest

from deepmlf_llm.media import decode
from deepmlf_llm.media.decode import Damage, audio, audio_blocks, frames, probe
from deepmlf_llm.media.status import ClipError
from tests.media.clips import click, cut, flash, flip, grey, tone, turn_sideways, write_clip

av = pytest.importorskip("av", reason="needs PyAV")


@pytest.mark.parametrize(
    ("name", "video", "sound"),
    [
        ("a.mp4", "mpeg4", "aac"),
        ("a.mkv", "mpeg4", "aac"),
        ("a.webm", "libvpx-vp9", "libopus"),
        ("a.m4a", None, "aac"),
        ("a.wav", None, "pcm_s16le"),
    ],
)
def test_a_click_and_a_flash_are_where_they_were_put(tmp_path, name, video, sound):
    path = tmp_path / name
    write_clip(path, 1.5, click(1.5, 0.8), None if video is None else flash(0.8), 25, video=video, audio=sound)
    probed = probe(path)
    assert probed.duration == pytest.approx(1.5, abs=0.1)
    assert not probed.truncated
    samples = audio(probed)
    loudest = np.abs(samples).argmax() / 16000
    assert loudest == pytest.approx(0.8, abs=0.01)
    if video is None:
        assert probed.video_end is None
        return
    shown = [(time, picture.mean()) for time, picture in frames(probed, 25)]
    assert [time for time, _ in shown] == pytest.approx([k / 25 for k in range(len(shown))])
    first = next(time for time, level in shown if level > 128)
    assert first == pytest.approx(0.8, abs=1 / 25 + 1e-6)  # within one frame


def test_pictures_of_a_variable_rate_are_held_until_the_next_one(tmp_path):
    times = [0.0, 0.1, 0.75, 0.8, 1.4]
    path = write_clip(tmp_path / "a.mkv", picture=flash(0.75), times=times)
    shown = [(time, picture.mean() > 128) for time, picture in frames(probe(path), 10)]
    assert [white for time, white in shown if time < 0.75 - 1e-6] == [False] * 8
    assert all(white for time, white in shown if time >= 0.8)


def test_a_sideways_picture_comes_upright(tmp_path):
    corner = np.zeros((48, 64, 3), np.uint8)
    corner[:16, :16] = 255  # top left as stored
    path = turn_sideways(write_clip(tmp_path / "a.mp4", 0.3, picture=lambda time: corner))
    _, picture = next(frames(probe(path), 5))
    assert picture.shape == (64, 48, 3)
    bright = {name: part.mean() for name, part in _corners(picture).items()}
    assert max(bright, key=bright.get) == "top right"  # a quarter turn clockwise brings it there


def _corners(picture):
    return {
        "top left": picture[:12, :12],
        "top right": picture[:12, -12:],
        "bottom left": picture[-12:, :12],
        "bottom right": picture[-12:, -12:],
    }


def test_missing_empty_and_foreign_files_are_told_apart(tmp_path):
    for name, content, status, told in (
        ("none.mp4", None, "missing", "no such file"),
        ("zero.mp4", b"", "unreadable", "0 bytes"),
        ("random.mp4", np.random.default_rng(0).bytes(5000), "unreadable", "cannot be read"),
        ("text.mp4", b"this is no film " * 50, "unreadable", "cannot be read"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ClipError, match=told) as raised:
            probe(tmp_path / name)
        assert raised.value.status == status, name
    with pytest.raises(ClipError):
        probe(tmp_path)


def test_a_file_that_was_cut_off_is_noticed(tmp_path):
    whole = write_clip(tmp_path / "plain.mp4", 3, tone(3), grey())
    with pytest.raises(ClipError) as raised:
        probe(cut(whole))  # its index lay at its end
    assert raised.value.status == "unreadable"
    for name in ("fast.mp4", "a.mkv"):  # the index lies at the beginning: no error comes from the library
        options = {"movflags": "faststart"} if name.endswith("mp4") else {}
        path = cut(write_clip(tmp_path / name, 3, tone(3), grey(), options=options))
        probed = probe(path)
        assert probed.truncated
        with pytest.raises(ClipError, match=r"cut off: .* of 3\.\d\d s") as raised:
            probed.check()
        assert raised.value.status == "truncated"
        probed.check(allow_damaged=True)
        assert 0.3 < len(audio(probed)) / 16000 < 2.8


@pytest.mark.parametrize("channels", [2, 8, 12])
def test_channels_are_averaged_however_many_there_are(tmp_path, channels):
    left = (tone(0.5) * 20000).astype("<i2")
    path = tmp_path / "many.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(np.stack([left, *[left * 0] * (channels - 1)], 1).tobytes())
    found = subprocess.run(  # a fault in the library would end the process
        [sys.executable, "-c", READ, str(path), str(tmp_path / "out.npy")], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), left / 32768 / channels, atol=1e-4)


READ = """
import sys
import numpy as np
from pathlib import Path
from deepmlf_llm.media.decode import audio, probe
np.save(sys.argv[2], audio(probe(Path(sys.argv[1]))))
"""


@pytest.mark.parametrize("loud_first", [True, False])
def test_a_length_that_is_guessed_from_the_bit_rate_is_not_believed(tmp_path, loud_first):
    noise = np.random.default_rng(0).standard_normal(5 * 16000).astype(np.float32) * 0.3
    quiet = tone(5.0) * 1e-4
    sound = np.concatenate([noise, quiet] if loud_first else [quiet, noise])
    path = write_clip(tmp_path / "a.aac", 10, sound)
    with av.open(str(path)) as container:
        assert abs(container.duration / 1e6 - 10) > 1  # what FFmpeg guesses
    probed = probe(path)
    probed.check()
    assert len(audio(probed)) / 16000 == pytest.approx(10, abs=0.2)


@pytest.mark.parametrize(("tag", "id3", "guessed"), [(b"", 0, True), (b"Xing", 0, False), (b"Info", 300, False)])
def test_an_mp3_says_its_length_in_a_tag(tmp_path, tag, id3, guessed):
    header = b"ID3\x04\x00\x00" + bytes([0, 0, id3 >> 7, id3 & 127]) + bytes(id3) if id3 else b""
    (tmp_path / "a.mp3").write_bytes(header + b"\xff\xfb\x90\x00" + bytes(32) + tag + bytes(400))
    container = SimpleNamespace(format=SimpleNamespace(name="mp3"))
    assert decode._guesses_duration(container, tmp_path / "a.mp3") is guessed


def test_damaged_packets_are_counted_and_what_follows_keeps_its_place(tmp_path):
    sound = tone(2.0) * (np.arange(32000) < 6000)
    sound[-8000:] = click(0.5, 0.25)
    path = flip(write_clip(tmp_path / "a.mkv", 2, sound, audio="aac"), 40, 0.25, 0.7)
    damage = Damage()
    samples = audio(probe(path), damage)
    assert damage.packets > 0
    assert 1 + np.abs(samples[16000:]).argmax() / 16000 == pytest.approx(1.75, abs=0.02)


def test_a_hole_in_the_sound_is_silence(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        for start in (0, 16000):
            frame = av.AudioFrame.from_ndarray(np.full((1, 8000), 8000, np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    samples = audio(probe(path))
    assert len(samples) == 24000
    assert np.abs(samples[100:7900]).min() > 0.2
    assert not samples[8100:15900].any()
    assert np.abs(samples[16100:23900]).min() > 0.2


def test_blocks_are_the_whole_in_pieces(tmp_path):
    probed = probe(write_clip(tmp_path / "a.wav", 2.3, tone(2.3), audio="pcm_s16le"))
    blocks = list(audio_blocks(probed, seconds=0.5))
    assert [len(block) for block in blocks[:-1]] == [8000] * 4
    np.testing.assert_array_equal(np.concatenate(blocks), audio(probed))


def test_sound_of_any_rate_and_layout_becomes_16_khz_mono(tmp_path):
    path = tmp_path / "a.wav"
    t = np.arange(44100) / 44100
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=44100, layout="stereo")
        wave = (np.sin(2 * np.pi * 440 * t) * 16000).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(np.repeat(wave, 2)[None], format="s16", layout="stereo")
        frame.sample_rate, frame.pts = 44100, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    samples = audio(probe(path))
    assert len(samples) == pytest.approx(16000, abs=2)
    expected = np.sin(2 * np.pi * 440 * np.arange(len(samples)) / 16000) * 16000 / 32768
    assert np.abs(samples - expected)[200:-200].max() < 0.01


def test_the_cover_of_a_recording_is_no_film(tmp_path):
    path = tmp_path / "a.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=16000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(grey(0.7, 32, 32)(0.0), format="rgb24")
        picture.pts = 0
        container.mux([*cover.encode(picture), *cover.encode(None)])
        for k in range(16):
            frame = av.AudioFrame.from_ndarray(tone(0.064)[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, k * 1024
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    probed = probe(path)
    assert probed.video_end is None
    assert probed.audio_end == pytest.approx(1.02, abs=0.1)


def test_nothing_but_a_moment_is_too_short(tmp_path):
    with pytest.raises(ClipError, match=r"lasts 0\.0") as raised:
        probe(write_clip(tmp_path / "a.wav", 0.05, tone(0.05), audio="pcm_s16le")).check()
    assert raised.value.status == "too_short"


_LONG = """
import sys
from deepmlf_llm.media.decode import audio_blocks, frames, probe
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
def read(path):
    probed = probe(path)
    return sum(1 for _ in frames(probed, 2)), sum(len(block) for block in audio_blocks(probed, seconds=1))
read(sys.argv[1])
before = peak()
print(*read(sys.argv[2]), before, peak())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_five_minutes_need_no_more_memory_than_a_moment(tmp_path):
    short, long = (
        write_clip(tmp_path / f"{k}.mkv", k, tone(k, level=0.1), grey(), fps=2, audio="pcm_s16le") for k in (5, 300)
    )
    run = subprocess.run([sys.executable, "-c", _LONG, str(short), str(long)], capture_output=True, text=True)
    pictures, samples, before, after = map(int, run.stdout.split())
    assert (pictures, samples) == (600, 300 * 16000)
    assert after < 400_000  # kilobytes; the samples alone are 19,200
    assert after - before < 10_000
