"""Labelled data of any kind, as a model reads them: its own standardisation, one split, test only."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.data.columns import Columns
from deepmlf_llm.data.inputs import open_input
from deepmlf_llm.data.labelled import choose_split, open_labelled
from deepmlf_llm.data.prepare import prepare
from deepmlf_llm.data.restandardise import StandardisationChange
from deepmlf_llm.data.store import open_store
from deepmlf_llm.errors import DataError


@pytest.fixture
def prepared(tree, write_pickle, tmp_path):
    prepare(write_pickle(tree), "mosi", tmp_path / "data", case="lower", storage="numpy")
    return tmp_path / "data"


@pytest.fixture
def trained(prepared):
    """Settings of a model that was trained on ``prepared``."""
    return DeepMLFConfig(modalities=open_store(prepared).modalities, dataset="mosi", text={"case": "lower"})


def as_rows(split, names=("audio", "vision")):
    rows = []
    for i, identity in enumerate(split["id"]):
        frames = {name: split[name][i, : split[f"{name}_lengths"][i]].tolist() for name in names}
        label = float(split["regression_labels"][i])
        rows.append({"id": identity, "text": split["raw_text"][i], "label": label, **frames})
    return rows


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_form_of_the_same_split_is_the_same(prepared, trained, tree, write_pickle, tmp_path):
    expected = open_store(prepared).split("test")
    forms = [
        prepared,
        write_pickle(tree, "saved again.pkl", 5),
        write_pickle({"test": tree["test"]}, "test only.pkl"),
        write_lines(tmp_path / "lines.jsonl", as_rows(tree["test"])),
    ]
    for form in forms:
        found = open_labelled(form, trained)
        assert found.name == "test"
        assert (found.rows.ids, found.rows.texts) == (expected.ids, expected.texts)
        np.testing.assert_array_equal(found.rows.labels, expected.labels)
        for name in ("audio", "vision"):
            np.testing.assert_allclose(found.rows.features[name].values, expected.features[name].values, atol=1e-5)
        assert str(tmp_path) not in json.dumps(found.facts)
    assert open_labelled(forms[1], trained, "valid").name == "valid"
    assert open_labelled(prepared, trained).notes == []


def test_names_that_differ_are_renamed(trained, tree, write_pickle):
    test = {("face" if key == "vision" else key): value for key, value in tree["test"].items()}
    test["face_lengths"] = test.pop("vision_lengths")
    path = write_pickle({"test": test}, "other names.pkl")
    with pytest.raises(DataError, match="no modality 'vision'"):
        open_labelled(path, trained)
    assert open_labelled(path, trained, rename={"face": "vision"}).rows.features["vision"].dim == 4


def test_data_prepared_by_themselves_get_the_standardisation_of_the_training(trained, tree, write_pickle, tmp_path):
    expected = open_labelled(write_pickle(tree, "raw.pkl"), trained).rows
    tree["train"]["audio"] = tree["train"]["audio"] * 3 + 1  # other statistics
    prepare(write_pickle(tree, "other.pkl"), "mosi", tmp_path / "other", case="lower", storage="numpy")
    assert (
        np.abs(
            open_store(tmp_path / "other").split("test").features["audio"].values - expected.features["audio"].values
        ).max()
        > 0.3
    )
    found = open_labelled(tmp_path / "other", trained)
    np.testing.assert_allclose(found.rows.features["audio"].values, expected.features["audio"].values, atol=1e-4)
    assert found.notes == [
        "'audio' was standardised by these data's own training split and is now by the adapter's; what that clipped or "
        "left out as constant is lost"
    ]
    rows = list(open_input(tmp_path / "other", Columns(trained.modalities), trained, "test").rows())
    np.testing.assert_allclose(rows[0].values["audio"], expected.features["audio"][0], atol=1e-4)


def test_changes_of_standardisation_both_ways():
    one = {"mean": [1.0, 2.0], "std": [2.0, 0.5], "clip": None, "constant": []}
    other = {"mean": [0.0, 1.0], "std": [1.0, 4.0], "clip": 3.0, "constant": []}
    raw = np.array([[5.0, 2.5], [-1.0, 200.0]], dtype=np.float32)
    standard = StandardisationChange("audio", None, one)(raw)
    np.testing.assert_allclose(standard, [[2, 1], [-1, 396]])
    np.testing.assert_allclose(StandardisationChange("audio", one, None)(standard), raw)
    np.testing.assert_allclose(StandardisationChange("audio", one, other)(standard), [[3, 0.375], [-1, 3]])
    assert StandardisationChange("audio", one, one)(standard) is standard
    assert StandardisationChange("audio", one, dict(one)).note == ""


def test_what_does_not_fit_is_refused(prepared, trained, tree, write_pickle, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        open_labelled(tmp_path / "nowhere", trained)
    with pytest.raises(DataError, match=r"no split 'tset' .*'test'"):
        open_labelled(prepared, trained, "tset")
    with pytest.raises(DataError, match="is prepared"):
        open_labelled(prepared, trained, rename={"a": "b"})
    other = SimpleNamespace(modalities=trained.modalities, dataset="sims", task=None, text=trained.text)
    with pytest.raises(DataError, match="labels of 'mosi', the adapter predicts those of 'sims'"):
        open_labelled(prepared, other)
    rows = as_rows(tree["test"])
    for change, message in (({"label": None}, "label"), ({"label": 7.0}, "7"), ({"audio": [[1.0]]}, "dimension")):
        path = write_lines(tmp_path / "bad.jsonl", [*rows, {**rows[0], "id": "bad", **change}])
        with pytest.raises(DataError, match=message):
            open_labelled(path, trained)


def test_the_split_that_is_meant():
    assert choose_split(["train", "valid", "test"], None, "x") == "test"
    assert choose_split(["valid"], None, "x") == "valid"
    with pytest.raises(DataError, match="no split 'test'"):
        choose_split(["train", "valid"], None, "x")


def test_a_manifest_of_the_older_form_says_the_same(prepared, trained, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(prepared, old)
    manifest = json.loads((old / "manifest.json").read_text())
    for facts in manifest["modalities"].values():
        facts["features"] = {"kind": "precomputed", "source": "elsewhere.pkl", "fingerprint": "0123456789abcdef"}
        del facts["provenance"]
    (old / "manifest.json").write_text(json.dumps(manifest))
    (old / "manifest.sha256").unlink()
    assert open_labelled(old, trained).rows.fingerprint() == open_labelled(prepared, trained).rows.fingerprint()


def test_predictions_are_made_of_all_these_too(prepared, trained, tree, write_pickle, tmp_path):
    columns = Columns(trained.modalities)
    whole = open_input(write_pickle(tree, "whole.pkl"), columns, trained)
    assert len(list(whole.rows())) == 21
    one = open_input(tmp_path / "whole.pkl", columns, trained, "valid")
    assert [row.values["id"] for row in one.rows()] == tree["valid"]["id"]
    assert whole.identity() != one.identity()
    row = next(one.rows())
    np.testing.assert_array_equal(row.values["audio"], tree["valid"]["audio"][0, : tree["valid"]["audio_lengths"][0]])
    assert not one.prepared
    store = open_input(prepared, columns, trained, "valid")
    assert store.prepared
    assert [r.values["text"] for r in store.rows()] == [text.lower() for text in tree["valid"]["raw_text"]]
    for source in (prepared, tmp_path / "whole.pkl"):
        with pytest.raises(DataError, match="no split 'vaild'"):
            open_input(source, columns, trained, "vaild")


def test_labels_are_not_needed_for_predictions_and_modalities_that_differ_are_told(
    trained, tree, write_pickle, tmp_path
):
    columns = Columns(trained.modalities)
    test = {key: value for key, value in tree["test"].items() if key != "regression_labels" and "vision" not in key}
    test["heart_rate"], test["heart_rate_lengths"] = test["audio"], test["audio_lengths"]
    found = open_input(write_pickle({"test": test}, "no labels.pkl"), columns, trained)
    assert {*next(found.rows()).values} == {"id", "text", "audio"}
    assert "'heart_rate' is not read: the model has no such modality" in found.notes
    assert "'vision' is absent from every utterance" in found.notes


def test_a_model_that_reads_text_alone_needs_no_features(prepared, trained, tree, write_pickle, tmp_path):
    alone = DeepMLFConfig(dataset="mosi", text={"case": "lower"})
    bare = {key: value for key, value in tree["test"].items() if not key.startswith(("audio", "vision"))}
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "label.csv").write_text("video_id,clip_id,text,label,mode\na,1,so it went,1.5,test\n")
    for source in (prepared, write_pickle(tree, "all.pkl"), write_pickle({"test": bare}, "bare.pkl"), folder):
        found = open_labelled(source, alone)
        assert found.rows.modalities == {}
        assert "the model reads text alone: no features are read" in found.notes
        rows = list(open_input(source, Columns([]), alone, "test").rows())
        assert [row.values["text"].lower() for row in rows] == found.rows.texts
        assert {key for row in rows for key in row.values} == {"id", "text"}
    with pytest.raises(DataError, match="no modality found"):
        open_labelled(folder, trained)


def test_a_single_clip(trained, write_pickle):
    clip = {"audio": np.ones((6, 3), dtype=np.float32), "vision": np.ones((2, 4), dtype=np.float32)}
    path = write_pickle(clip, "clip.pkl")
    (row,) = open_input(path, Columns(trained.modalities), trained, text="well done").rows()
    assert (row.values["id"], row.values["text"], row.values["audio"].shape) == ("clip", "well done", (6, 3))
    with pytest.raises(DataError, match="no transcript"):
        open_input(path, Columns(trained.modalities), trained)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"<!doctype html><html></html>", "web page"), (b"\x1f\x8b\x08\0junk", "gzip"), (b"\x89HDF\r\n\x1a\n", "HDF5")],
)
def test_lines_that_are_something_else_are_named(trained, tmp_path, content, message):
    (tmp_path / "in.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_input(tmp_path / "in.jsonl", Columns(trained.modalities), trained)
