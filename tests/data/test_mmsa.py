from __future__ import annotations

import hashlib

import numpy as np
import pytest

from deepmlf_llm.data.sources import open_source
from deepmlf_llm.errors import DataError


def read_mmsa(path, modalities=None):
    return open_source(path, "mosi", modalities=modalities)


def test_padding_is_cut_off_by_the_lengths(write_pickle, tree):
    path = write_pickle(tree)
    corpus = read_mmsa(path)
    assert corpus.source == {
        "kind": "mmsa",
        "name": "source.pkl",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    for split, content in tree.items():
        rows = corpus.splits[split]
        assert rows.ids == content["id"]
        assert rows.texts == content["raw_text"]
        np.testing.assert_array_equal(rows.labels, content["regression_labels"])
        assert list(rows.features) == ["audio", "vision"]
        for name, sequences in rows.features.items():
            for frames, padded, length in zip(sequences, content[name], content[f"{name}_lengths"], strict=True):
                np.testing.assert_array_equal(frames, padded[:length])


def test_any_modality_with_lengths_is_found_and_others_are_left_out(write_pickle, tree):
    for split in tree.values():
        split["heart_rate"] = split["audio"][..., :1]
        split["heart_rate_lengths"] = split["audio_lengths"]
        split["text"] = np.zeros((len(split["id"]), 4, 7))
        split["text_lengths"] = split["audio_lengths"]
        split["text_bert"] = np.zeros((len(split["id"]), 3, 50))
    path = write_pickle(tree)
    assert list(read_mmsa(path).splits["valid"].features) == ["audio", "vision", "heart_rate"]
    assert list(read_mmsa(path, ["heart_rate", "audio"]).splits["test"].features) == ["heart_rate", "audio"]
    with pytest.raises(DataError, match=r"no modality 'visoin' \(did you mean 'vision'\?\); there are audio, vision"):
        read_mmsa(path, ["visoin"])


@pytest.mark.parametrize("as_lists", [False, True])
def test_one_vector_an_utterance_and_ragged_rows(write_pickle, tree, as_lists):
    for split in tree.values():
        split["audio"] = split["audio"][:, 0]
        rows = [frames[:length] for frames, length in zip(split["vision"], split["vision_lengths"], strict=True)]
        split["vision"] = rows if as_lists else np.array([*rows, None], dtype=object)[:-1]
        del split["audio_lengths"], split["vision_lengths"]
    rows = read_mmsa(write_pickle(tree)).splits["train"]
    np.testing.assert_array_equal(rows.features["audio"][3], tree["train"]["audio"][3][None])
    assert [len(frames) for frames in rows.features["vision"]] == [len(row) for row in tree["train"]["vision"]]


def test_without_lengths_the_zero_frames_at_the_ends_are_padding(write_pickle, tree):
    for split in tree.values():
        split["audio"][:] = 0
        split["audio"][:, 2:4] = 1
        split["audio"][0] = 0
        del split["audio_lengths"]
    corpus = read_mmsa(write_pickle(tree))
    assert [len(frames) for frames in corpus.splits["valid"].features["audio"]] == [0, 2, 2, 2]
    assert any("audio has no lengths" in note for note in corpus.notes)


def test_padding_is_cut_off_lists_as_off_arrays(write_pickle, tree):
    for split in tree.values():
        split["audio"][:] = 0
        split["audio"][:, 2:4] = 1
        split["audio"] = split["audio"].tolist()
        del split["audio_lengths"]
    corpus = read_mmsa(write_pickle(tree))
    assert [len(frames) for frames in corpus.splits["valid"].features["audio"]] == [2, 2, 2, 2]
    assert any("audio has no lengths" in note for note in corpus.notes)


@pytest.mark.parametrize("ids", [None, 5, np.array("x")])
def test_ids_that_are_no_column_are_named_without_labels_too(write_pickle, tree, ids):
    for split in tree.values():
        split["id"] = ids
        del split["regression_labels"]
    with pytest.raises(DataError, match=r"id is a (NoneType|int|ndarray), expected one id a row"):
        open_source(write_pickle(tree), "mosi", labelled=False)


def test_object_arrays_byte_strings_and_column_labels(write_pickle, tree):
    for split in tree.values():
        split["raw_text"] = np.array(split["raw_text"], dtype=object)
        split["id"] = np.array(split["id"]).astype("S")
        split["regression_labels"] = split["regression_labels"][:, None]
        split["audio_lengths"] = np.array(split["audio_lengths"], dtype=np.float64)
        split["regression_labels_T"] = split["regression_labels"] / 2
        split["regression_labels_A"] = []  # as some files have it
    rows = read_mmsa(write_pickle(tree)).splits["test"]
    assert rows.ids[0] == "testvideo$_$0"
    assert rows.labels.shape == (5,)
    assert list(rows.unimodal) == ["T"]


def _set(split, key, value):
    def change(tree):
        if value is None:
            del tree[split][key]
        else:
            tree[split][key] = value(tree[split][key]) if callable(value) else value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("valid", "raw_text", None), "split 'valid' lacks raw_text; it has id, "),
        (_set("test", "vision", None), "split 'test' lacks the modality vision"),
        (
            _set("train", "audio_lengths", lambda v: [99, *v[1:]]),
            r"audio_lengths: row 0 \('trainvideo\$_\$0'\) has length 99.* has 6 frames",
        ),
        (_set("train", "audio_lengths", lambda v: [-1, *v[1:]]), "has length -1"),
        (_set("train", "audio_lengths", lambda v: [1.5, *v[1:]]), "has length 1.5"),
        (_set("train", "audio_lengths", lambda v: [np.nan, *v[1:]]), "has length nan"),
        (_set("train", "audio_lengths", lambda v: v[1:]), "11 lengths for 12 rows"),
        (_set("train", "audio_lengths", "abc"), "audio_lengths: expected one number a row"),
        (_set("valid", "audio", lambda v: v[1:]), "3 rows of audio for 4 labels"),
        (_set("valid", "audio", lambda v: v[..., None]), r"audio of row 0 .* is float32 of shape \(6, 3, 1\)"),
        (_set("valid", "audio", lambda v: v.astype("U")), "expected numbers"),
        (_set("valid", "audio", 3.0), "audio is a float, expected an array"),
        (_set("valid", "audio", lambda v: [[[1.0], [1.0, 2.0]]] * len(v)), "audio of row 0 .* is not an array"),
        (_set("valid", "raw_text", lambda v: v[1:]), "number of rows: id 4, raw_text 3, regression_labels 4"),
        (_set("valid", "regression_labels", lambda v: v[:2]), "number of rows: id 4, raw_text 4, regression_labels 2"),
        (_set("valid", "id", 5), "id is a int, expected one id a row"),
        (_set("valid", "regression_labels", [0.5, True, 0, 0]), r"row 1 .* is True \(no number\)"),
        (
            _set("valid", "raw_text", lambda v: [None, *v[1:]]),
            r"raw_text: no transcript in 1 of 4 rows: row 0 \('validvideo\$_\$0'\) is None",
        ),
        (_set("valid", "raw_text", lambda v: ["\ud800", *v[1:]]), "is not valid text"),
        (_set("valid", "id", lambda v: [b"\xff", *v[1:]]), "is not valid text"),
        (_set("valid", "regression_labels", lambda v: np.stack([v, v], 1)), r"found shape \(4, 2\)"),
        (_set("valid", "regression_labels", lambda v: list("abcd")), "regression_labels: expected one number a row"),
        (_set("valid", "regression_labels", ["1", "1,5", "0", "-0,5"]), r"row 1 .*'1,5' \(a decimal comma.*, row 3"),
        (_set("valid", "regression_labels", np.array(1.0)), "expected one number a row, found one ndarray"),
        (_set("valid", "regression_labels", lambda v: v.astype(complex)), "expected one number a row, but row 0"),
        (
            _set("valid", "regression_labels", [0, 10**400, 0, 0]),
            r"row 1 \('validvideo\$_\$1'\) is 1000.* \(too large\)",
        ),
        (_set("valid", "regression_labels", [0, None, 0, 0]), r"the first is nan of 'validvideo\$_\$1' \(row 1\)"),
        (_set("valid", "regression_labels_T", [0.0, 1.0]), "regression_labels_T: 2 labels for 4 utterances"),
        (_set("valid", "regression_labels_T", ["x"] * 4), "regression_labels_T: expected one number a row, but row 0"),
        (
            _set("valid", "raw_text", ["a", np.nan, "b", None]),
            "no transcript in 2 of 4 rows: row 1 .* is nan, row 3 .* is",
        ),
        (_set("valid", "raw_text", ["a", 1.5, "b", ["c"]]), "row 1 .* is a float: 1.5, row 3 .* is a list"),
        (_set("valid", "audio", lambda v: v.astype(complex)), "audio of row 0 .* holds complex numbers"),
        (_set("valid", "audio", lambda v: v[:, :, :0]), r"of shape \(6, 0\), expected numbers"),
        (_set("valid", "audio", lambda v: v[:, 0, 0]), r"of shape \(\), expected numbers"),
        (_set("valid", "audio", lambda v: [None] * len(v)), "but its array has 0 frames"),
        (_set("valid", "audio_lengths", 3), "expected one number a row, found one int"),
    ],
)
def test_what_does_not_fit_together_is_refused(write_pickle, tree, change, message):
    change(tree)
    with pytest.raises(DataError, match=message):
        read_mmsa(write_pickle(tree))


@pytest.mark.parametrize("content", [{}, [1], {"a": 1, "valid_": 2}, "text"])
def test_a_pickle_of_something_else_is_refused(write_pickle, content):
    with pytest.raises(DataError, match="no MMSA pickle: expected the splits"):
        read_mmsa(write_pickle(content))


def test_no_modality_at_all(write_pickle, tree):
    for split in tree.values():
        for key in ("audio", "vision", "audio_lengths", "vision_lengths"):
            del split[key]
    with pytest.raises(DataError, match="no modality found"):
        read_mmsa(write_pickle(tree))


@pytest.mark.parametrize("empty", ["", [], None, np.array([]), np.full(4, np.nan), [None] * 4])
def test_an_empty_column_of_unimodal_labels_is_none(write_pickle, tree, empty):
    tree["valid"]["regression_labels_A"] = empty
    assert open_source(write_pickle({"valid": tree["valid"]}), "mosi").splits["valid"].unimodal == {}


@pytest.mark.parametrize("key", ["visual", "Vision", "video"])
def test_modalities_and_columns_under_other_names(write_pickle, tree, key):
    whole = read_mmsa(write_pickle(tree)).splits["test"]
    for split in tree.values():
        split[key], split[f"{key}_lengths"] = split.pop("vision"), split.pop("vision_lengths")
        split["transcript"], split["labels"] = split.pop("raw_text"), split.pop("regression_labels")
        split["text_bert"] = np.zeros((len(split["id"]), 3, 50))
    path = write_pickle(tree)
    corpus = read_mmsa(path)
    assert corpus.notes == [
        f"{key!r} was read as vision",
        "'transcript' was read as raw_text",
        "'labels' was read as regression_labels",
        "left out: text_bert (text features are not needed; name others as modalities)",
    ]
    rows = corpus.splits["test"]
    assert rows.texts == whole.texts
    np.testing.assert_array_equal(rows.features["vision"][1], whole.features["vision"][1])
    assert list(read_mmsa(path, [key]).splits["test"].features) == [key]  # asked for under its own name
    assert list(read_mmsa(path, ["vision"]).splits["test"].features) == ["vision"]
    renamed = open_source(path, "mosi", rename={key: "face"}).splits["test"]
    assert list(renamed.features) == ["audio", "face"]


def test_text_as_features_is_no_transcript(write_pickle, tree):
    for split in tree.values():
        split["text"] = np.zeros((len(split.pop("raw_text")), 4, 300))
    with pytest.raises(DataError, match=r"lacks raw_text; .* a language model reads transcripts, not text features"):
        read_mmsa(write_pickle(tree))


def test_python_2_wrote_names_as_bytes(write_pickle, tree):
    whole = read_mmsa(write_pickle(tree)).splits["train"]
    tree[b"train"] = {name.encode(): value for name, value in tree.pop("train").items()}
    assert read_mmsa(write_pickle(tree)).splits["train"].ids == whole.ids


@pytest.mark.parametrize("dtype", ["f2", "i1", "u8", ">f4", ">f8", "g", "O", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_real_number_in_any_order_is_read(write_pickle, tree, dtype, order):
    values = (np.arange(4 * 6 * 3) % 7).reshape(4, 6, 3)
    tree["valid"]["audio"] = np.asarray(values.astype(dtype), order=order)
    rows = open_source(write_pickle({"valid": tree["valid"]}), "mosi").splits["valid"]
    expected = values[1][: tree["valid"]["audio_lengths"][1]]
    np.testing.assert_array_equal(rows.features["audio"][1].astype("f4"), expected.astype(dtype).astype("f4"))


def test_values_beyond_float32_are_counted(write_pickle, tree):
    tree["valid"]["audio"] = tree["valid"]["audio"].astype(np.float64)
    tree["valid"]["audio_lengths"] = [6] * 4
    tree["valid"]["audio"][2, 0, :2] = [1e300, -4e38]
    assert read_mmsa(write_pickle(tree)).notes == [
        "2 values of audio in valid are beyond float32 (first in 'validvideo$_$2') and count as infinite"
    ]


def test_seven_labels_a_row_are_moseis(write_pickle, tree):
    sentiment = tree["train"]["regression_labels"]
    for split in tree.values():
        split["regression_labels"] = np.stack([split["regression_labels"], *[np.zeros(len(split["id"]))] * 6], 1)
    path = write_pickle(tree)
    corpus = open_source(path, "mosei")
    np.testing.assert_array_equal(corpus.splits["train"].labels, sentiment)
    assert corpus.notes == ["7 labels a row (CMU-MOSEI's sentiment and six emotions): the first was read"]
    with pytest.raises(DataError, match="expected one number a row, found 7, which is how CMU-MOSEI's"):
        open_source(path, "mosi")
