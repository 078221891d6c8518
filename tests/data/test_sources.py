"""Every form in which the field exchanges labelled data, written by the tests, and what is none of them."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from deepmlf_llm.data.labelled import split_as_trained
from deepmlf_llm.data.prepare import prepare
from deepmlf_llm.data.sources import open_source
from deepmlf_llm.data.store import open_store
from deepmlf_llm.errors import ConfigError, DataError


def records_of(split):
    """A split of the test source as one dictionary an utterance."""
    return [
        {
            "id": split["id"][row],
            "text": split["raw_text"][row],
            "label": float(split["regression_labels"][row]),
            **{
                name: split[name][row][: split[f"{name}_lengths"][row]].astype(float).tolist()
                for name in ("audio", "vision")
            },
        }
        for row in range(len(split["id"]))
    ]


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def same(corpus, other):
    """Whether two sources hold the same utterances."""
    assert list(corpus.splits) == list(other.splits)
    for split, rows in corpus.splits.items():
        expected = other.splits[split]
        assert (rows.ids, rows.texts) == (expected.ids, expected.texts)
        np.testing.assert_array_equal(rows.labels, expected.labels)
        assert list(rows.features) == list(expected.features)
        for name, sequences in rows.features.items():
            for ours, theirs in zip(sequences, expected.features[name], strict=True):
                np.testing.assert_array_equal(ours, theirs)
    return True


def test_one_split_alone_is_read_for_evaluation_and_refused_for_training(write_pickle, tree, tmp_path):
    path = write_pickle({"test": tree["test"]})
    corpus = open_source(path, "mosi")
    assert list(corpus.splits) == ["test"]
    with pytest.raises(
        DataError, match=r"expected the splits train, valid, test, found test: training needs all three"
    ):
        prepare(path, "mosi", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_trained_model_reads_is_what_preparation_would_give_it(write_pickle, tree, tmp_path):
    path = write_pickle(tree)
    prepare(path, "mosi", tmp_path / "out")
    store = open_store(tmp_path / "out")
    whole, alone = open_source(path, "mosi"), open_source(write_pickle({"test": tree["test"]}), "mosi")
    for split, corpus in (("valid", whole), ("test", alone)):
        ready = split_as_trained(corpus, split, store.modalities, store.manifest.text["case"])
        assert ready.fingerprint() == store.split(split).fingerprint()
    with pytest.raises(DataError, match="no split 'train'; it has test"):
        split_as_trained(alone, "train", store.modalities, "keep")
    with pytest.raises(DataError, match="no modality 'smell'"):
        split_as_trained(alone, "test", {"smell": store.modalities["audio"]}, "keep")
    with pytest.raises(DataError, match=r"vision has 4 dimensions \('testvideo\$_\$0'\), expected 3"):
        split_as_trained(alone, "test", {"vision": store.modalities["audio"]}, "keep")


def test_prepared_like_the_training_data(write_pickle, tree, tmp_path):
    prepare(write_pickle(tree), "mosi", tmp_path / "train", case="keep", clip=5.0, frame_rates={"audio": 5})
    tree["test"]["id"][0] = "renamed"
    manifest = prepare(write_pickle({"test": tree["test"]}), "mosi", tmp_path / "out", like=tmp_path / "train")
    ours, theirs = open_store(tmp_path / "out"), open_store(tmp_path / "train")
    assert list(manifest.splits) == ["test"]
    assert (manifest.text["case"], manifest.settings["clip"]) == ("keep", 5.0)
    for name, facts in ours.modalities.items():
        assert facts["standardisation"] == theirs.modalities[name]["standardisation"]
        assert facts["frame_rate"] == theirs.modalities[name]["frame_rate"]
        mine, other = (store.split("test").features[name].values for store in (ours, theirs))
        np.testing.assert_array_equal(mine, other)
    with pytest.raises(ConfigError, match=r"it is mosi, not mosei; its case is keep, not lower"):
        prepare(write_pickle(tree), "mosei", tmp_path / "no", like=tmp_path / "train", case="lower")
    tree["test"]["audio"] = tree["test"]["audio"][..., :2]
    with pytest.raises(DataError, match="audio cannot be prepared like train: it has 3 dimensions there, 2 here"):
        prepare(write_pickle({"test": tree["test"]}), "mosi", tmp_path / "no", like=tmp_path / "train")


@pytest.mark.parametrize("name", ["dev", "val", "validation", "Valid"])
def test_the_validation_split_under_its_other_names(write_pickle, tree, name):
    whole = open_source(write_pickle(tree), "mosi")
    tree[name] = tree.pop("valid")
    assert same(open_source(write_pickle(tree), "mosi"), whole)
    tree["valid"] = tree[name]
    if name != "valid":
        with pytest.raises(DataError, match=f"both '{name}' and 'valid' would be the split valid"):
            open_source(write_pickle(tree), "mosi")


def test_json_lines_and_one_file_a_split_hold_the_same(write_pickle, tree, tmp_path):
    whole = open_source(write_pickle(tree), "mosi")
    lines = [{**record, "mode": split} for split, content in tree.items() for record in records_of(content)]
    assert same(open_source(write_lines(tmp_path / "all.jsonl", lines), "mosi"), whole)
    for folder in ("pickles", "lines", "parts"):
        (tmp_path / folder).mkdir()
    for split, name in (("train", "train"), ("valid", "dev"), ("test", "test")):
        (tmp_path / "pickles" / f"{name}.pkl").write_bytes(pickle.dumps(tree[split]))
        write_lines(tmp_path / "lines" / f"{name}.jsonl", records_of(tree[split]))
        (tmp_path / "parts" / name).mkdir()
        write_lines(tmp_path / "parts" / name / "a.jsonl", records_of(tree[split])[:2])
        write_lines(tmp_path / "parts" / name / "b.jsonl", records_of(tree[split])[2:])
    for folder in ("pickles", "lines", "parts"):
        corpus = open_source(tmp_path / folder, "mosi")
        assert same(corpus, whole)
        assert corpus.source["name"] == folder
    (tmp_path / "pickles" / "train.pkl").write_bytes(pickle.dumps(records_of(tree["train"])))  # a list of dictionaries
    assert same(open_source(tmp_path / "pickles", "mosi"), whole)
    (tmp_path / "pickles" / "valid.pkl").write_bytes(pickle.dumps(tree["valid"]))
    with pytest.raises(DataError, match=r"both dev\.pkl and valid\.pkl would be the split valid"):
        open_source(tmp_path / "pickles", "mosi")


def word_tuples(split, strings=False):
    rows = []
    for record in records_of(split):
        words = record["text"].split()
        frames = [np.ones((len(words), dim)) * record["label"] for dim in (4, 3)]
        first = (list(range(len(words))), *frames, [*words, "sp"]) if strings else (np.array([*words, "sp"]), *frames)
        rows.append((first, np.array([[record["label"]]]), record["id"]))
    return rows


@pytest.mark.parametrize("strings", [False, True])
def test_word_tuples(write_pickle, tree, strings):
    names = {"train": "train", "valid": "dev", "test": "test"}
    path = write_pickle({names[split]: word_tuples(content, strings) for split, content in tree.items()})
    corpus = open_source(path, "mosi")
    assert corpus.source["kind"] == "word_tuples"
    for split, rows in corpus.splits.items():
        assert rows.ids == tree[split]["id"]
        assert rows.texts == tree[split]["raw_text"]  # without the pause
        np.testing.assert_allclose(rows.labels, tree[split]["regression_labels"])
        assert rows.features["vision"][1].shape == (5, 4)
        assert rows.features["audio"][1].shape == (5, 3)


def test_word_tuples_that_are_none(write_pickle, tree):
    good = word_tuples(tree["test"])
    (words, vision, audio), label, name = good[2]
    faults = {
        "words are not strings in row 2 .*: indices say nothing": (([1, 2], vision, audio), label, name),
        "row 2 is no ((words, visual, acoustic), label, id)": ((words, vision), label, name),
        "rows have 0, 1 labels": ((words, vision, audio), np.empty((0, 1)), name),
        "the id of row 2 is a list": ((words, vision, audio), label, ["a", "b"]),
        "vision of row 2 .* holds strings": ((words, words, audio), label, name),
        "labels are not numbers in": ((words, vision, audio), np.array([[9.0]]), name),
    }
    for message, row in faults.items():
        with pytest.raises(
            DataError, match=message.replace("((", r"\(\(").replace("), label, id)", r"\), label, id\)")
        ):
            open_source(write_pickle({"test": [*good[:2], row, *good[3:]]}), "mosi")
    assert open_source(write_pickle({"test": [row[:2] for row in good]}), "mosi").splits["test"].ids[1] == "row_1"
    assert list(open_source(write_pickle(good, "dev.pkl"), "mosi").splits) == ["valid"]  # named by its file


def test_lines_under_other_names(tmp_path, tree):
    records = records_of(tree["test"])
    plain = open_source(write_lines(tmp_path / "a.jsonl", records), "mosi")
    others = [
        {
            "video_id": "v",
            "clip_id": row,
            "raw_text": record["text"],
            "regression_labels": record["label"],
            "Acoustic": record["audio"],
            "visual": record["vision"] or None,
            "tokens": ["a", "b"],
            "split": "dev",
        }
        for row, record in enumerate(records)
    ]
    corpus = open_source(write_lines(tmp_path / "b.jsonl", others), "mosi")
    assert list(corpus.splits) == ["valid"]
    rows = corpus.splits["valid"]
    assert rows.ids[3] == "v$_$3"
    assert rows.texts == plain.splits["test"].texts
    np.testing.assert_array_equal(rows.features["audio"][2], plain.splits["test"].features["audio"][2])
    assert corpus.notes == ["'Acoustic' was read as audio", "'visual' was read as vision"]


LINES = {
    "no JSON": ("{id: 1}", r"line 2: not JSON \("),
    "no object": ("[1]", "line 2: expected an object, got list"),
    "a key twice": ('{"id": 1, "id": 2}', "line 2: not JSON .*stands there twice"),
    "endless nesting": ('{"a": ' + "[" * 100_000, "line 2: not JSON .nested too deep"),
    "no label": ('{"id": "x", "text": "a"}', r"no 'label' in 1 of 2 rows: row 1 \('x'\)"),
    "no text": ('{"id": "x", "label": 1}', r"no 'text' in 1 of 2 rows: row 1 \('x'\)"),
    "a text of null": ('{"id": "x", "text": null, "label": 1}', r"no transcript in 1 of 2 rows: row 1 \('x'\) is None"),
    "a decimal comma": ('{"id": "x", "text": "a", "label": "1,5"}', r"row 1 \('x'\) is '1,5' \(a decimal comma"),
    "a number without end": ('{"id": "x", "text": "a", "label": 1%s}' % ("0" * 400), "too large"),
    "no number": ('{"id": "x", "text": "a", "label": NaN}', r"the first is nan of 'x' \(row 1\)"),
    "a name in the place of features": (
        '{"id": "x", "text": "a", "label": 1, "audio": "a.wav"}',
        r"audio of row 1 \('x'\) holds strings",
    ),
    "words among the frames": (
        '{"id": "x", "text": "a", "label": 1, "audio": [[1, "b"]]}',
        r"audio of row 1 \('x'\) holds strings",
    ),
    "a number in quotes": (
        '{"id": "x", "text": "a", "label": 1, "audio": [[1, "1_0"]]}',
        r"audio of row 1 \('x'\) holds strings",
    ),
    "true among the frames": (
        '{"id": "x", "text": "a", "label": 1, "audio": [[1, true]]}',
        r"audio of row 1 \('x'\) holds true or false",
    ),
    "true among the labels": (
        '{"id": "x", "text": "a", "label": true, "audio": [[1]]}',
        r"row 1 \('x'\) is True \(no number\)",
    ),
    "an id of null": ('{"id": null, "text": "a", "label": 1}', "id: no id in 1 of 2 rows: row 1 is None; give each"),
    "an id that is a list": (
        '{"id": [1], "text": "a", "label": 1}',
        r"id: expected strings, but row 1 is a list: \[1\]",
    ),
    "a keyword as a modality": (
        '{"id": "x", "text": "a", "label": 1, "class": [[1]]}',
        "modality 'class': a keyword of Python; give it another name",
    ),
    "ragged frames": (
        '{"id": "x", "text": "a", "label": 1, "audio": [[1], [1, 2]]}',
        r"audio of row 1 \('x'\) is not an array",
    ),
    "another dimension": (
        '{"id": "x", "text": "a", "label": 1, "audio": [[1, 2]]}',
        r"audio has 2 dimensions in split 'test' \('x'\), but 1 before",
    ),
    "a split for some only": ('{"id": "x", "text": "a", "label": 1, "mode": "test"}', "mode of row 0 is None"),
}


@pytest.mark.parametrize("fault", LINES)
def test_lines_that_are_wrong_are_named(tmp_path, fault):
    line, message = LINES[fault]
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps({"id": "a", "text": "b", "label": 1.0, "audio": [[1.0]]}) + "\n" + line + "\n")
    with pytest.raises(DataError, match=message):
        open_source(path, "mosi")


def test_lines_of_files_that_were_put_together(tmp_path):
    rows = [json.dumps({"id": str(i), "text": "b", "label": 1.0, "audio": [[1.0]]}) for i in range(3)]
    for content in (f"\ufeff{rows[0]}\n\ufeff{rows[1]}\r\n\n{rows[2]}", "\r".join(rows)):
        (tmp_path / "test.jsonl").write_bytes(content.encode())
        assert open_source(tmp_path / "test.jsonl", "mosi").splits["test"].ids == ["0", "1", "2"]


@pytest.mark.parametrize("rows", [[{"id": "a"}, 5], [{"id": "a"}, None, {"id": "b"}]])
@pytest.mark.parametrize("whole", [True, False])
def test_a_row_that_is_no_dictionary_is_named(write_pickle, rows, whole):
    with pytest.raises(DataError, match=r"row 1 is a (int|NoneType), expected a dictionary as row 0 is"):
        open_source(write_pickle(rows if whole else {"test": rows}), "mosi")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ([[1.0], [2, 3]], "rows have 1, 3 labels, expected one a row"),
        ({"a": 1}, r"row 1 \('v1'\) is {'a': 1} \(no number\)"),
        (True, r"row 1 \('v1'\) is True \(no number\)"),
    ],
)
def test_labels_of_word_tuples_that_are_none(write_pickle, label, message):
    rows = [((["hi"], np.ones((1, 4)), np.ones((1, 3))), said, f"v{i}") for i, said in enumerate([0.5, label])]
    with pytest.raises(DataError, match=message):
        open_source(write_pickle({"test": rows}), "mosi")


def test_null_among_numbers_is_nan_and_null_alone_is_absent(tmp_path):
    lines = [
        {"id": "a", "text": "", "label": 0, "audio": [[None, 1.0]]},
        {"id": "b", "text": "", "label": 0, "audio": None},
    ]
    rows = open_source(write_lines(tmp_path / "a.jsonl", lines), "mosi").splits["test"]
    np.testing.assert_array_equal(rows.features["audio"][0], [[np.nan, 1.0]])
    assert len(rows.features["audio"][1]) == 0


def test_without_labels_on_request(write_pickle, tree, tmp_path):
    for split in tree.values():
        del split["regression_labels"]
    path = write_pickle(tree)
    with pytest.raises(DataError, match="lacks regression_labels"):
        open_source(path, "mosi")
    rows = open_source(path, "mosi", labelled=False).splits["test"]
    assert rows.texts == tree["test"]["raw_text"]
    assert np.isnan(rows.labels).all()
    lines = write_lines(tmp_path / "a.jsonl", [{"id": "a", "text": "b", "audio": [[1.0]]}])
    assert np.isnan(open_source(lines, "mosi", labelled=False).splits["test"].labels).all()


def test_two_keys_for_one_modality_are_refused(write_pickle, tree):
    for split in tree.values():
        for name in ("visual", "video"):
            split[name], split[f"{name}_lengths"] = split["vision"], split["vision_lengths"]
        del split["vision"], split["vision_lengths"]
    path = write_pickle(tree)
    with pytest.raises(DataError, match="'visual' and 'video' would both be vision; rename one"):
        open_source(path, "mosi")
    corpus = open_source(path, "mosi", rename={"video": "scene"})
    assert list(corpus.splits["test"].features) == ["audio", "vision", "scene"]
