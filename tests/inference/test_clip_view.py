"""Mirrors ``inference/clip_view.py``: what the page shows of a clip, without the page."""

from __future__ import annotations

import re

import pytest

from deepmlf_llm.backbones import load_tokenizer
from deepmlf_llm.errors import DataError
from deepmlf_llm.inference.clip_view import ClipViewer
from deepmlf_llm.inference.clips import ClipReader
from deepmlf_llm.inference.predictor import SentimentPredictor
from deepmlf_llm.media.extract import Extractor
from deepmlf_llm.media.recipe import AudioSettings, RecipeSettings, VisionSettings
from deepmlf_llm.media.status import ClipError
from tests.inference.test_clips import small_model
from tests.media.clips import Hears, grey, tone, write_clip

pytest.importorskip("av", reason="needs PyAV")
pytest.importorskip("PIL", reason="needs Pillow")
pytest.importorskip("matplotlib", reason="needs matplotlib")


@pytest.fixture(scope="module")
def viewer():
    settings = RecipeSettings(AudioSettings("prosody"), VisionSettings("outline"))
    predictor = SentimentPredictor(small_model(Extractor(settings).facts()), load_tokenizer("tiny-llama"))
    return ClipViewer(ClipReader(predictor, transcriber=Hears("a <b> c")))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "talk.mp4", 2.0, tone(2.0), grey())


@pytest.fixture(scope="module")
def record(viewer, clip):
    return viewer.open(clip)


def number(view):
    return float(re.search(r"<strong>([+-]\d\.\d\d)", view.headline)[1])


def test_it_shows_the_number_the_curve_and_the_words(viewer, record, clip):
    view = viewer.view(record, clip.name)
    assert view.curve.startswith('<svg class="curve"')
    assert "a &lt;b&gt; c" in view.transcript
    assert "as heard" in view.transcript
    assert re.search(r"border-left-color:#[0-9a-f]{6}", view.transcript)
    assert view.timing.startswith("ok: 2.0 s of clip read in")
    assert "text alone" in view.headline


def test_what_is_left_out_is_not_read(viewer, record, clip):
    assert viewer.modalities == ["text", "audio", "vision"]
    numbers = {name: number(viewer.view(record, clip.name, [name])) for name in viewer.modalities}
    expected = viewer.reader.predictor.predict(["a <b> c"], vision=[record.features["vision"]])[0]
    assert numbers["audio"] == pytest.approx(expected.polarity, abs=0.006)
    without = viewer.view(record, clip.name, ["text"])
    assert "a &lt;b&gt; c" not in without.transcript
    assert "Read: audio, vision" in without.headline
    with pytest.raises(DataError, match="switch something on"):
        viewer.view(record, clip.name, viewer.modalities)


def test_the_strip_shows_what_the_model_looks_at(viewer, clip, tmp_path):
    squares = viewer.squares(clip)
    assert len(squares) == 8
    assert squares[0][0].shape == (96, 96, 3)
    assert squares[1][1] == "0.2 s"
    assert viewer.strip(clip).count("data:image/png;base64,iVBOR") == 8
    assert viewer.strip(write_clip(tmp_path / "a.wav", 1.0, tone(1.0), audio="pcm_s16le")) == ""


def test_a_long_or_broken_clip_is_told_in_plain_words(viewer, clip, tmp_path):
    with pytest.raises(ClipError, match="this page takes 1 s at most"):
        ClipViewer(viewer.reader, longest=1.0).open(clip)
    (tmp_path / "zero.mp4").write_bytes(b"")
    with pytest.raises(ClipError, match="0 bytes"):
        viewer.open(tmp_path / "zero.mp4")
