"""Keys of rows: renamed, ignored, refused, or told."""

from __future__ import annotations

import numpy as np
import pytest

from deepmlf_llm.data.columns import ColumnError, Columns, check_identity, holds_sequence
from deepmlf_llm.data.names import nearest_name
from deepmlf_llm.errors import ConfigError, DataError

NAMES = ["audio", "vision"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("visual", "vision"), ("Visual", "vision"), ("VISION", "vision"), ("video", "vision"),
        ("acoustic", "audio"), ("Audio", "audio"), ("audio_features", "audio"), ("feat-audio", "audio"),
        ("vison", "vision"), ("openface", "vision"), ("visual.features", "vision"),
        ("text_bert", None), ("speaker", None),
    ],
)  # fmt: skip
def test_the_nearest_name(name, expected):
    assert nearest_name(name, NAMES) == expected


def test_keys_are_renamed_and_ignored():
    columns = Columns(NAMES, {"visual": "vision", "raw_text": "text", "clip": "id"}, ["words"])
    row = {"clip": 7, "raw_text": "x", "visual": [[1]], "words": ["a"], "label": 1.5}
    assert columns.read(row) == {"id": 7, "text": "x", "vision": [[1]], "label": 1.5}
    assert columns.unread_note() == ""
    assert columns.unmet_notes() == []
    assert Columns(NAMES, {"visual": "vision"}).unmet_notes() == ["--rename visual=vision: no row has 'visual'"]


def test_several_strange_keys_are_named_together():
    with pytest.raises(ColumnError) as caught:
        Columns(NAMES).read({"text": "x", "visual": [[1]], "acoustic": np.ones((2, 2)), "x": b"1"})
    for part in ("--rename visual=vision acoustic=audio", "--ignore visual acoustic x", "are audio, vision"):
        assert part in str(caught.value)


@pytest.mark.parametrize("rename", [{"visual": "visoin"}, {"a": "audio", "b": "audio"}])
def test_a_rename_must_give_known_names_once(rename):
    with pytest.raises(ConfigError, match="--rename"):
        Columns(NAMES, rename)


def test_two_keys_of_one_name_are_refused():
    with pytest.raises(DataError, match="two values of 'vision'"):
        Columns(NAMES, {"visual": "vision"}).read({"text": "x", "vision": None, "visual": [[1]]})


def test_a_model_that_reads_text_alone_leaves_features_out_and_says_so():
    """None of them can be a modality under another name, and the rows of other models are predicted as they are."""
    columns = Columns([])
    row = {"id": 1, "text": "x", "audio": [[1.0]], "visual": np.ones((2, 2)), "speaker": "a"}
    assert columns.read(row) == {"id": 1, "text": "x"}
    assert columns.unread_note() == "not read, because they are no id, text, label: 'audio', 'visual', 'speaker'"
    with pytest.raises(ColumnError, match="no 'text', but 'raw_text'"):
        columns.read({"raw_text": "x", "audio": [[1.0]]})


def test_a_million_different_keys_are_not_all_remembered():
    columns = Columns(NAMES)
    for i in range(1000):
        columns.read({"text": "x", f"key {i}": i})
    assert len(columns.unread) == 40


def test_what_holds_a_sequence_and_what_can_be_an_id():
    nested = [1]
    for _ in range(5000):
        nested = {"inner": nested}
    assert all(map(holds_sequence, ([1], (1,), b"1", np.ones(1), {"a": {"b": [0]}}, nested)))
    assert not any(map(holds_sequence, ([], {}, "text", 1, None, np.empty((0, 3)), {"a": {}, "b": []})))
    for good in (None, "", "x", 0, 10**400, 1.5, True):
        check_identity(good)
    for bad in ([], {}, float("nan"), float("inf"), b"x"):
        with pytest.raises(DataError, match="id is"):
            check_identity(bad)
