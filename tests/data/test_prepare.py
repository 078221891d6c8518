"""Preparation as a whole: what enters the statistics, what the manifest says, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from deepmlf_llm.data.manifest import read_manifest
from deepmlf_llm.data.prepare import prepare
from deepmlf_llm.data.store import open_store
from deepmlf_llm.errors import DataError, DeepMLFError, FileError


@pytest.fixture
def source(write_pickle, tree) -> Path:
    return write_pickle(tree)


def real_frames(tree, split, name):
    content = tree[split]
    return np.concatenate(
        [frames[:length] for frames, length in zip(content[name], content[f"{name}_lengths"], strict=True)]
    )


def test_standardisation_comes_from_the_real_frames_of_training_only(source, tree, tmp_path):
    manifest = prepare(source, "mosi", tmp_path / "out")
    store = open_store(tmp_path / "out")
    for name in ("audio", "vision"):
        frames = real_frames(tree, "train", name).astype(np.float64)
        np.testing.assert_allclose(manifest.modalities[name]["standardisation"]["mean"], frames.mean(0))
        np.testing.assert_allclose(manifest.modalities[name]["standardisation"]["std"], frames.std(0))
        for split in tree:
            expected = (real_frames(tree, split, name) - frames.mean(0)) / frames.std(0)
            np.testing.assert_allclose(store.split(split).features[name].values, expected, atol=1e-5)


def test_validation_and_test_do_not_change_what_training_reads(write_pickle, tree, tmp_path):
    prepare(write_pickle(tree), "mosi", tmp_path / "a")
    for split in ("valid", "test"):
        tree[split]["audio"] += 100
    manifest = prepare(write_pickle(tree), "mosi", tmp_path / "b")
    a, b = (open_store(tmp_path / name) for name in "ab")
    assert a.manifest.splits["train"]["sha256"] == b.manifest.splits["train"]["sha256"]
    assert a.manifest.splits["test"]["sha256"] != b.manifest.splits["test"]["sha256"]
    assert manifest.modalities["audio"]["cleaned"]["train"]["clipped"] == 0
    assert manifest.modalities["audio"]["cleaned"]["test"]["clipped"] > 0


def test_manifest_says_it_all(write_pickle, tree, tmp_path):
    tree["valid"]["audio_lengths"][1] = 0
    tree["train"]["audio_lengths"][:2] = [3, 3]
    tree["train"]["audio"][0, :2, 1] = [np.nan, -np.inf]
    tree["train"]["audio"][1, 0, 0] = np.inf
    tree["test"]["vision"][0, -1] = np.nan  # padding, unless all frames of it are real
    tree["test"]["vision_lengths"][0] = 2
    tree["test"]["raw_text"][2] = ""
    tree["valid"]["regression_labels"][:3] = [-3, 0, 3]
    source = write_pickle(tree)
    returned = prepare(source, "mosi", tmp_path / "out", frame_rates={"audio": 5})
    manifest = read_manifest(tmp_path / "out")
    assert manifest == returned
    assert manifest["dataset"] == "mosi"
    assert set(manifest.keys()) == set(manifest.to_dict())
    with pytest.raises(KeyError):
        manifest["nothing"]
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()
    assert manifest.source["name"] == "source.pkl"
    assert {split: facts["rows"] for split, facts in manifest.splits.items()} == {"train": 12, "valid": 4, "test": 5}
    audio, vision = manifest.modalities["audio"], manifest.modalities["vision"]
    assert (audio["dim"], audio["frame_rate"], vision["dim"], vision["frame_rate"]) == (3, 5.0, 4, None)
    assert audio["absent"] == {"train": 0, "valid": 1, "test": 0}
    assert audio["cleaned"]["train"] == {"nan": 1, "positive_inf": 1, "negative_inf": 1, "clipped": 0}
    assert vision["cleaned"]["test"]["nan"] == 0
    assert audio["features"] == {"kind": "precomputed"}
    assert audio["provenance"] == {"source": "source.pkl", "sha256": manifest.source["sha256"]}
    lengths = [length for split in tree.values() for length in split["audio_lengths"] if length]
    assert audio["frames"] == {"median": np.median(lengths), "max": max(lengths), "total": sum(lengths)}
    assert manifest.labels == {"range": [-3.0, 3.0], "min": -3.0, "max": 3.0}
    counts = manifest.splits["valid"]["labels"]
    assert counts["negative"] + counts["neutral"] + counts["positive"] == 4
    assert manifest.text == {"case": "lower", "words": {"median": 5.0, "max": 5, "empty": 1}}


@pytest.mark.parametrize(
    ("dataset", "case", "expected"),
    [
        ("mosi", None, "i think it's number 0"),
        ("mosi", "sentence", "I think it's number 0"),
        ("mosei", None, "I THINK IT'S NUMBER 0"),
        ("mosi", "keep", "I THINK IT'S NUMBER 0"),
    ],
)
def test_case_is_applied_and_recorded(source, tmp_path, dataset, case, expected):
    manifest = prepare(source, dataset, tmp_path / "out", case=case)
    assert open_store(tmp_path / "out").split("train")[0]["text"] == expected
    assert manifest.text["case"] == manifest.settings["case"]


def test_half_precision_comes_out_as_float32(write_pickle, tree, tmp_path):
    for split in tree.values():
        split["audio"] = np.clip(split["audio"], -100, 100).astype(np.float16)
    prepare(write_pickle(tree), "mosi", tmp_path / "out")
    assert open_store(tmp_path / "out").split("test")[0]["audio"].dtype == np.float32


def test_the_same_again_does_nothing_and_another_is_refused(source, tmp_path):
    out = tmp_path / "out"
    first = prepare(source, "mosi", out)
    stamp = (out / "manifest.json").stat().st_mtime_ns
    assert prepare(source, "mosi", out) == first
    assert (out / "manifest.json").stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match=r"holds another data set already \(mosi from source\.pkl"):
        prepare(source, "mosi", out, case="keep")
    assert read_manifest(out) == first


def test_an_empty_directory_is_filled_and_a_new_one_made_with_its_parents(source, tmp_path):
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "new" / "deep"):
        prepare(source, "mosi", out)
        assert sorted(path.name for path in out.parent.iterdir() if path.name.startswith(".")) == []
        assert os.stat(out).st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _labels(value):
    def change(tree):
        tree["valid"]["regression_labels"][2] = value

    return change


def _empty(tree):
    tree["test"] = {key: value[:0] for key, value in tree["test"].items()}


def _dims(tree):
    tree["test"]["audio"] = tree["test"]["audio"][..., :2]


def _silent(tree):
    for name in ("audio", "vision"):
        tree["valid"][f"{name}_lengths"] = [0] * 4


def _unimodal(tree):
    tree["train"]["regression_labels_A"] = np.full(12, 4.0)


BAD_CONTENT = {
    "NaN label": (
        _labels(np.nan),
        r"1 of 4 labels are not numbers in \[-3, 3\], the first is nan of 'validvideo\$_\$2'",
    ),
    "label out of range": (_labels(3.5), r"split 'valid', dataset mosi: 1 of 4 labels are not numbers in \[-3, 3\]"),
    "infinite label": (_labels(-np.inf), "-inf of 'validvideo"),
    "unimodal label out of range": (_unimodal, "label_A: 12 of 12 labels"),
    "empty split": (_empty, "split 'test' is empty"),
    "other dims in one split": (_dims, "audio has 2 dimensions in split 'test'.*but 3 before"),
    "no frame of anything": (_silent, r"split 'valid' has no real frame in any modality \(audio, vision\)"),
}


@pytest.mark.parametrize("fault", BAD_CONTENT)
def test_bad_content_is_one_line_and_leaves_nothing(write_pickle, tree, tmp_path, fault):
    change, message = BAD_CONTENT[fault]
    change(tree)
    source = write_pickle(tree)
    with pytest.raises(DataError, match=message) as caught:
        prepare(source, "mosi", tmp_path / "new" / "out")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source.pkl"]


def test_label_range_is_the_datasets(source, write_pickle, tree, tmp_path):
    with pytest.raises(DataError, match=r"dataset sims: \d+ of \d+ labels are not numbers in \[-1, 1\]"):
        prepare(source, "sims", tmp_path / "out")
    for split in tree.values():
        split["regression_labels"] /= 3
    prepare(write_pickle(tree), "sims", tmp_path / "out")
    manifest = prepare(write_pickle(tree), "mosi", tmp_path / "out2")
    assert any("are these SIMS labels?" in note for note in manifest.notes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "mosie"}, r"expected one of mosi, mosei, .* \(did you mean 'mosi'\?\)"),
        ({"case": "upper"}, "case='upper': expected one of lower, sentence, keep"),
        ({"clip": -1.0}, "clip=-1.0: expected a positive number"),
        ({"clip": float("nan")}, "clip=nan: expected a positive number"),
        ({"frame_rates": {"audoi": 5}}, r"'audoi' \(did you mean 'audio'\?\)"),
        ({"frame_rates": {"audio": 0}}, "expected a positive number of Hz"),
        ({"storage": "parquet"}, "storage='parquet': expected one of arrow, numpy"),
        ({"modalities": ["smell"]}, "no modality 'smell'; there are audio, vision"),
    ],
)
def test_bad_settings(source, tmp_path, settings, message):
    with pytest.raises(DeepMLFError, match=message):
        prepare(source, settings.pop("dataset", "mosi"), tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_missing_source_and_foreign_output(source, tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        prepare(tmp_path / "nowhere.pkl", "mosi", tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="mine: holds something else already"):
        prepare(source, "mosi", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    with pytest.raises(DataError, match="is a file"):
        prepare(source, "mosi", source)


def test_a_failure_while_writing_leaves_nothing(source, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deepmlf_llm.data.store.write_splits", full)
    with pytest.raises(FileError, match=r"cannot be written: the disk is full \(.* needed, .* free\)"):
        prepare(source, "mosi", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source.pkl"]


def test_oddities_are_noted(write_pickle, tree, tmp_path):
    tree["test"]["id"][0] = tree["train"]["id"][0]
    tree["valid"]["id"][1] = tree["valid"]["id"][0]
    tree["train"]["vision_lengths"] = [0] * 12
    notes = " | ".join(prepare(write_pickle(tree), "mosi", tmp_path / "out").notes)
    assert "1 utterances are in two splits (such as 'trainvideo$_$0' in train and test)" in notes
    assert "1 utterance ids occur twice within valid" in notes
    assert "vision is absent from every training utterance" in notes


@pytest.mark.parametrize("name", ["text", "audio_mask", "my audio", "label"])
def test_modality_names_that_cannot_be_keywords(write_pickle, tree, tmp_path, name):
    for split in tree.values():
        split[name] = split["audio"]
        split[f"{name}_lengths"] = split["audio_lengths"]
    with pytest.raises(DataError, match=r"expected a plain name|no modality"):
        prepare(write_pickle(tree), "mosi", tmp_path / "out", modalities=[name])
