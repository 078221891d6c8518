"""Mirrors ``inference/clips.py`` and ``clip_files.py``: a clip through a model that was trained on such clips."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch

from deepmlf_llm.backbones import load_base_model, load_tokenizer
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.errors import ConfigError, DataError
from deepmlf_llm.inference import clip_files
from deepmlf_llm.inference.clips import ClipReader
from deepmlf_llm.inference.predictor import SentimentPredictor
from deepmlf_llm.media.asr import Segment, Word
from deepmlf_llm.media.extract import Extractor
from deepmlf_llm.media.recipe import AudioSettings, RecipeSettings, VisionSettings
from deepmlf_llm.model.peft_model import DeepMLFModel
from tests.media.clips import Hears, grey, tone, write_clip

pytest.importorskip("av", reason="needs PyAV")
pytest.importorskip("PIL", reason="needs Pillow")

SETTINGS = RecipeSettings(AudioSettings("prosody", 10.0), VisionSettings("outline", 2.0))


def small_model(modalities, **settings):
    torch.manual_seed(0)
    config = DeepMLFConfig(fusion_layers=[3], modalities=modalities, **settings)
    return DeepMLFModel(load_base_model("tiny-llama"), config).eval()


@pytest.fixture(scope="module")
def predictor():
    return SentimentPredictor(small_model(Extractor(SETTINGS).facts()), load_tokenizer("tiny-llama"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Two seconds of voice with a second of silence between them, and a picture."""
    sound = np.concatenate([tone(1.0), np.zeros(16000, np.float32), tone(1.0, 150)])
    return write_clip(tmp_path_factory.mktemp("clip") / "talk.mp4", 3.0, sound, grey())


class Talk:
    """Hears two sentences."""

    def __init__(self):
        self.facts = {"transcriber": "test"}

    def transcribe(self, samples):
        return [
            Segment(0.0, 1.0, "good day", [Word(0.0, 0.4, "good", 1.0), Word(0.5, 1.0, "day", 1.0)]),
            Segment(2.0, 3.0, "bad <night>", [Word(2.0, 2.4, "bad", 1.0), Word(2.5, 3.0, "<night>", 1.0)]),
        ]


@pytest.fixture(scope="module")
def result(predictor, clip):
    return ClipReader(predictor, transcriber=Talk()).read(clip)


def test_a_row_for_each_span_of_speech_is_what_the_model_says_of_it(predictor, clip, result):
    assert [(row.start, row.end, row.text) for row in result.rows] == [(0, 1, "good day"), (2, 3, "bad <night>")]
    assert result.whole.text == "good day bad <night>"
    assert result.whole.present == ["text", "audio", "vision"]
    made = Extractor(SETTINGS).extract(clip, "x").features
    for row, frames in zip(result.rows, (slice(0, 10), slice(20, 30)), strict=True):
        pictures = slice(frames.start // 5, frames.stop // 5)
        (expected,) = predictor.predict([row.text], audio=[made["audio"][frames]], vision=[made["vision"][pictures]])
        assert row.prediction.polarity == pytest.approx(expected.polarity, abs=1e-5)
        assert row.prediction.av_polarity == pytest.approx(expected.av_polarity, abs=1e-5)


def test_a_given_text_wins_and_rows_are_where_it_is_loud(predictor, clip):
    read = ClipReader(predictor, transcriber=Talk()).read(clip, "my words")
    assert read.record.text_source == "given"
    assert [row.text for row in read.rows] == ["my words"] * 2
    assert [row.start for row in read.rows] == pytest.approx([0.0, 1.9], abs=0.1)
    assert any("no times" in note for note in read.notes)
    (expected,) = predictor.predict(["my words"], **{k: [v] for k, v in read.record.features.items()})
    assert read.whole.prediction.polarity == pytest.approx(expected.polarity, abs=1e-6)
    assert predictor.predict_clip(clip, "my words").whole.prediction == read.whole.prediction


def test_windows_of_fixed_length_take_the_words_that_fall_into_them(predictor, clip):
    read = ClipReader(predictor, transcriber=Talk()).read(clip, window=0.5, hop=0.72)
    assert [row.start for row in read.rows] == [0, 0.72, 1.44, 2.16, 2.88]
    assert [row.end for row in read.rows] == [0.5, 1.22, 1.94, 2.66, read.record.duration]
    assert [row.text for row in read.rows] == ["good", "day", "", "bad", ""]
    assert read.rows[2].present == ["audio", "vision"]
    assert "fixed length" in read.notes[0]
    for window, hop in (("words", None), ("speech", 1.0), (0.0, None), (1.0, 0.0)):
        with pytest.raises(ConfigError, match="window"):
            ClipReader(predictor).read(clip, window=window, hop=hop)


def test_sound_alone_pictures_alone_and_words_alone(predictor, tmp_path):
    reader = ClipReader(predictor)
    sound = reader.read(write_clip(tmp_path / "a.m4a", 1.0, tone(1.0)))
    assert (sound.whole.present, sound.record.status) == (["audio"], "ok_no_video")
    mute = reader.read(write_clip(tmp_path / "b.mp4", 1.0, None, grey()))
    assert (mute.whole.present, len(mute.rows)) == (["vision"], 1)
    text_model = SentimentPredictor(small_model({}), load_tokenizer("tiny-llama"))
    words = ClipReader(text_model, transcriber=Hears("so it goes")).read(tmp_path / "a.m4a")
    assert words.whole.present == ["text"]
    assert words.whole.prediction.av_polarity is None
    with pytest.raises(DataError, match="nothing in it that the model reads"):
        ClipReader(text_model).read(tmp_path / "b.mp4")


def test_another_recipe_is_refused_by_its_field(predictor):
    facts = Extractor(SETTINGS).facts()
    facts["vision"]["features"]["resized"] = "nearest"
    other = SentimentPredictor(small_model(facts), load_tokenizer("tiny-llama"))
    with pytest.raises(DataError, match=r"'vision' was made by another feature recipe \(it differs in resized"):
        ClipReader(other)
    covarep = SentimentPredictor(small_model({"audio": {"dim": 74}}), load_tokenizer("tiny-llama"))
    with pytest.raises(DataError, match="this model cannot take clips: its audio features"):
        covarep.predict_clip("any.mp4")


def test_files_hold_every_row(predictor, result, tmp_path):
    clip_files.write_json(tmp_path / "a.json", result)
    told = json.loads((tmp_path / "a.json").read_text())
    assert told["rows"][1]["polarity"] == result.rows[1].prediction.polarity
    assert told["segments"][0]["words"][1]["word"] == "day"
    clip_files.write_csv(tmp_path / "a.csv", result)
    lines = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [line["row"] for line in lines] == ["whole", "1", "2"]
    assert float(lines[2]["polarity"]) == pytest.approx(result.rows[1].prediction.polarity)
    clip_files.write_srt(tmp_path / "a.srt", result, predictor.task)
    subtitles = (tmp_path / "a.srt").read_text()
    assert "00:00:02,000 --> 00:00:03,000" in subtitles
    assert "bad &lt;night&gt;" in subtitles


def test_colours_go_from_negative_to_positive(predictor):
    red, grey_one, blue = (clip_files.colour(value, predictor.task) for value in (-3.0, 0.0, 9.0))
    assert (red, grey_one, blue) == ("#d55e00", "#888888", "#0072b2")


def test_the_plot_has_the_curves_and_the_transcript(predictor, result, tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    clip_files.write_plot(tmp_path / "a.svg", result, predictor.task)
    root = ET.parse(tmp_path / "a.svg").getroot()
    assert root.tag.endswith("svg")
    assert float(root.get("height").removesuffix("pt")) > 200
    assert result.rows[0].prediction.av_polarity is not None
    clip_files.write_plot(tmp_path / "a.png", result, predictor.task)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="expected a name that ends with"):
        clip_files.write_plot(tmp_path / "a.pdf", result, predictor.task)
