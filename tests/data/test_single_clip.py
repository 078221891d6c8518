from __future__ import annotations

import numpy as np
import pytest

from deepmlf_llm.data.single_clip import read_single_clip
from deepmlf_llm.data.sources import open_source
from deepmlf_llm.errors import DataError

AUDIO, VISION = np.arange(12.0).reshape(4, 3), np.ones((5, 2), dtype=np.float32)


@pytest.mark.parametrize(
    "content",
    [
        {"raw_text": "not bad", "text": np.ones((6, 768)), "text_bert": np.ones((3, 6))},
        {"text": "not bad", "audio": AUDIO[None], "vision": VISION[None]},  # a batch of one
        {"raw_text": ["not bad"], "audio_lengths": [4], "id": ["clip"]},
        {"raw_text": np.array("not bad"), "audio": np.vstack([AUDIO, AUDIO]), "audio_lengths": 4},
        {"raw_text": b"not bad", "vision": VISION.tolist()},
    ],
)
def test_forms_of_one_clip(write_pickle, content):
    clip = read_single_clip(write_pickle({"audio": AUDIO, "vision": VISION} | content, "clip.pkl"))
    assert (clip["id"], clip["text"]) == ("clip", "not bad")
    np.testing.assert_array_equal(clip["audio"], AUDIO)
    np.testing.assert_array_equal(clip["vision"], VISION)


def test_other_names_and_a_transcript_from_elsewhere(write_pickle):
    path = write_pickle({"acoustic": AUDIO, "facet": VISION}, "a.pkl")
    clip = read_single_clip(path, text="well", rename={"facet": "vision"})
    assert list(clip) == ["id", "text", "audio", "vision"]
    assert clip["id"] == "a"
    with pytest.raises(DataError, match="has no transcript"):
        read_single_clip(path)
    with pytest.raises(DataError, match="no 'face' to rename"):
        read_single_clip(path, text="well", rename={"face": "vision"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html></html>", "a web page"),
        ([1], "not a single clip: expected audio and vision .* found a list"),
        ({"train": {}}, "not a single clip"),
        ({"raw_text": "x", "audio": np.array(["a", "b"])}, "audio holds strings"),
        ({"raw_text": "x", "audio": AUDIO, "audio_lengths": 9}, "audio_lengths is 9, but there are 4 frames"),
    ],
)
def test_what_is_no_clip(write_pickle, content, message):
    with pytest.raises(DataError, match=message):
        read_single_clip(write_pickle(content))


def test_a_clip_is_no_labelled_source(write_pickle):
    with pytest.raises(DataError, match="one clip without a label, as MMSA-FET writes it: predict reads that"):
        open_source(write_pickle({"audio": AUDIO, "vision": VISION, "raw_text": "x"}), "mosi")
