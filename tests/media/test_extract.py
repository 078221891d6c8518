"""Mirrors ``media/extract.py``, ``recipe.py`` and ``asr.py``: what becomes of a clip, whatever it has and lacks."""

from __future__ import annotations

import numpy as np
import pytest

from deepmlf_llm.errors import ConfigError, DataError
from deepmlf_llm.media import faces
from deepmlf_llm.media.asr import Segment, Word, transcribe_blocks
from deepmlf_llm.media.extract import Extractor
from deepmlf_llm.media.recipe import AudioSettings, RecipeSettings, VisionSettings, fingerprint, settings_of
from deepmlf_llm.media.status import ClipError
from tests.media.clips import Hears, cut, flip, grey, tone, write_clip

pytest.importorskip("av", reason="needs PyAV")
pytest.importorskip("PIL", reason="needs Pillow")

BOTH = RecipeSettings(AudioSettings("prosody", 10.0), VisionSettings("outline", 2.0))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "a.mp4", 2.0, tone(2.0), grey())


@pytest.fixture(scope="module")
def extractor():
    return Extractor(BOTH, Hears("well then"))


def test_a_clip_has_words_and_frames_at_steady_rates(extractor, whole):
    record = extractor.extract(whole)
    assert (record.status, record.text, record.text_source) == ("ok", "well then", "heard")
    assert record.features["audio"].shape == (20, 9)
    assert record.features["vision"].shape == (4, 512)
    assert record.features["audio"].dtype == np.float32
    assert {"open", "audio", "vision", "transcription"} <= record.seconds.keys()
    pitch = record.features["audio"][2:-2, 2]
    assert 100 * 2**pitch == pytest.approx(200, rel=0.02)


def test_a_given_text_wins_and_nobody_listens(extractor, whole):
    before = extractor.transcriber.calls
    record = extractor.extract(whole, "what I say")
    assert (record.text, record.text_source, record.segments) == ("what I say", "given", [])
    assert extractor.transcriber.calls == before
    assert extractor.extract(whole, "what I say", listen=True).segments[0].text == "well then"


def test_what_is_absent_is_empty_and_named(extractor, tmp_path):
    mute = extractor.extract(write_clip(tmp_path / "mute.mp4", 1, None, grey()))
    assert (mute.status, mute.text_source, [*mute.features]) == ("ok_no_audio", "none", ["vision"])
    blind = extractor.extract(write_clip(tmp_path / "blind.m4a", 1, tone(1)))
    assert (blind.status, [*blind.features]) == ("ok_no_video", ["audio"])
    silent = Extractor(BOTH, Hears("")).extract(write_clip(tmp_path / "silent.mp4", 1, 0 * tone(1), grey()))
    assert (silent.status, silent.text, silent.text_source) == ("ok_no_speech", "", "none")
    assert silent.absent == ["speech"]
    assert silent.speech == []


def test_a_clip_without_a_face_has_no_vision(monkeypatch, tmp_path):
    class Never:
        def __init__(self):
            self.facts = {"face_cascade": "a"}

        def detect(self, rgb):
            return []

    class Sometimes:
        def __init__(self):
            self.facts, self.calls = {}, 0

        def detect(self, rgb):
            self.calls += 1
            return [faces.Face((10, 10, 40, 40), 0.9)] if self.calls == 2 else []

    path = write_clip(tmp_path / "a.mp4", 2, None, grey())
    settings = RecipeSettings(vision=VisionSettings("outline", 2.0, face="centerface"))
    for detector, status, cascade in ((Never, "ok_no_face", "a"), (Sometimes, "ok", None)):
        monkeypatch.setattr("deepmlf_llm.media.extract.open_detector", lambda name, detector=detector: detector())
        extractor = Extractor(settings)
        record = extractor.extract(path)
        assert record.status == status
        assert extractor.facts()["vision"]["dim"] == 513
        assert extractor.facts()["vision"]["features"].get("face_cascade") == cascade
        assert settings_of(extractor.facts()) == settings
    assert record.face_found.tolist() == [False, True, False, False]
    assert record.features["vision"][:, -1].tolist() == [0, 1, 0, 0]  # faceless frames keep their place in time


def test_files_that_give_nothing_say_why(extractor, whole, tmp_path):
    fast = write_clip(tmp_path / "fast.mp4", 3, tone(3), grey(), options={"movflags": "faststart"})
    damaged = flip(write_clip(tmp_path / "damaged.mkv", 2, tone(2), grey()), 60, 0.3, 0.8)
    short = write_clip(tmp_path / "short.wav", 0.05, tone(0.05), audio="pcm_s16le")
    (tmp_path / "zero.mp4").write_bytes(b"")
    for path, status in (
        (cut(fast), "truncated"),
        (damaged, "corrupt"),
        (short, "too_short"),
        (tmp_path / "zero.mp4", "unreadable"),
        (tmp_path / "none.mp4", "missing"),
    ):
        with pytest.raises(ClipError) as raised:
            extractor.extract(path)
        assert raised.value.status == status, path
        assert path.name in str(raised.value)
    with pytest.raises(ClipError, match="longer than the 1 s allowed") as raised:
        Extractor(BOTH, longest=1).extract(whole)
    assert raised.value.status == "too_long"
    taken = Extractor(BOTH, allow_damaged=True)
    assert taken.extract(fast).status == "ok"
    assert taken.extract(damaged).damaged_packets > 0


def test_three_hours_take_no_more_words_than_there_are(monkeypatch):
    """A recording is read in pieces; what is heard keeps its time."""
    monkeypatch.setattr("deepmlf_llm.media.asr._PIECE_SECONDS", 20)
    sound = tone(65.0)
    quiet = slice(round(17.3 * 16000), round(17.9 * 16000))
    sound[quiet] = 0

    class Lengths:
        def __init__(self):
            self.facts, self.seen = {}, []

        def transcribe(self, samples):
            self.seen.append(len(samples))
            return [Segment(0.5, 1.0, "x", [Word(0.5, 1.0, "x", 1.0)])]

    heard = Lengths()
    found = list(transcribe_blocks(heard, np.split(sound, range(160000, len(sound), 160000))))
    assert sum(heard.seen) == len(sound)
    assert max(heard.seen) <= 20 * 16000
    assert 17.3 <= heard.seen[0] / 16000 <= 17.9
    assert [part.start for part in found] == pytest.approx(np.cumsum([0, *heard.seen[:-1]]) / 16000 + 0.5, abs=1e-3)
    assert found[1].words[0].start == found[1].start


def test_the_recipe_says_what_numbers_hang_on(extractor):
    facts = extractor.facts()
    assert facts["audio"]["features"]["encoder"] == "prosody"
    assert facts["vision"]["frame_rate"] == 2.0
    assert settings_of(facts) == BOTH
    others = [
        RecipeSettings(AudioSettings("prosody", 5.0), BOTH.vision),
        RecipeSettings(BOTH.audio, VisionSettings("outline", 2.0, margin=1.5)),
        RecipeSettings(BOTH.audio),
    ]
    names = {fingerprint(Extractor(settings).facts()) for settings in [BOTH, *others]}
    assert len(names) == 4


def test_a_model_of_other_features_says_that_it_takes_no_clips():
    covarep = {"audio": {"dim": 74, "features": {"kind": "precomputed"}, "provenance": {"source": "mosi.pkl"}}}
    with pytest.raises(DataError, match=r"cannot take clips: its audio features \(74 columns\) come as .*mosi\.pkl"):
        settings_of(covarep)
    told = {"vision": {"dim": 35, "features": {"encoder": "FACET 4.2"}}}
    with pytest.raises(DataError, match="made by encoder FACET"):
        settings_of(told)
    later = {"audio": {"dim": 9, "features": {"kind": "clips", "version": 99, "encoder": "prosody"}}}
    with pytest.raises(DataError, match="recipe version 99"):
        settings_of(later)


def test_settings_out_of_range_are_told_all_at_once():
    with pytest.raises(ConfigError, match=r"audio rate 0: .*fps -1: .*face 'lpb'.*did you mean 'lbp'"):
        RecipeSettings(AudioSettings("prosody", 0), VisionSettings("outline", -1, face="lpb")).check()
