"""The data directory: the same bytes back from both storages, and damage told apart from data."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest

from deepmlf_llm.data import storage as storage_module
from deepmlf_llm.data.prepare import prepare
from deepmlf_llm.data.storage import STORAGES
from deepmlf_llm.data.store import open_store
from deepmlf_llm.errors import DataError, MissingPackageError


@pytest.fixture
def prepared(write_pickle, tree, tmp_path):
    tree["valid"]["audio_lengths"] = [0] * 4
    tree["valid"]["regression_labels_T"] = np.array([1.0, np.nan, 0.0, -1.0])
    source = write_pickle(tree)
    for storage in STORAGES:
        prepare(source, "mosi", tmp_path / storage, storage=storage)
    return tmp_path


def test_both_storages_give_the_same(prepared):
    stores = [open_store(prepared / storage) for storage in STORAGES]
    for store in stores:
        store.verify()
    assert stores[0].manifest.splits == stores[1].manifest.splits
    assert stores[0].manifest.storage != stores[1].manifest.storage
    for split in ("train", "valid", "test"):
        ours, theirs = (store.split(split) for store in stores)
        assert ours.fingerprint() == theirs.fingerprint()
        assert ours.ids == theirs.ids
        for a, b in zip(ours, theirs, strict=True):
            assert (a["text"], a["label"]) == (b["text"], b["label"])
            np.testing.assert_array_equal(a["vision"], b["vision"])
    np.testing.assert_array_equal(stores[0].split("valid").unimodal["T"], [1, np.nan, 0, -1])
    assert [len(item["audio"]) for item in stores[0].split("valid")] == [0] * 4


def test_arrow_opens_with_datasets_itself(prepared):
    import datasets

    loaded = datasets.load_from_disk(str(prepared / "arrow"))
    store = open_store(prepared / "arrow")
    assert set(loaded) == {"train", "valid", "test"}
    row = loaded["train"][3]
    assert row["text"] == store.split("train")[3]["text"]
    np.testing.assert_array_equal(np.array(row["audio"], dtype=np.float32), store.split("train")[3]["audio"])


def test_modalities_hold_what_travels_with_a_model(prepared):
    store = open_store(prepared / "arrow")
    assert list(store.modalities) == ["audio", "vision"]
    for facts in store.modalities.values():
        assert set(facts) == {"dim", "frame_rate", "features", "provenance", "standardisation"}


def test_unknown_split_names_the_nearest(prepared):
    with pytest.raises(DataError, match=r"no split 'validation' \(did you mean 'valid'\?\); it has train, valid, test"):
        open_store(prepared / "arrow").split("validation")


@pytest.mark.parametrize("storage", STORAGES)
def test_splits_do_not_depend_on_the_files_once_loaded(prepared, storage):
    split = open_store(prepared / storage).split("train")
    before = split.fingerprint()
    shutil.rmtree(prepared / storage)
    assert split.fingerprint() == before


@pytest.mark.parametrize("storage", STORAGES)
def test_damaged_files_are_one_error(prepared, storage):
    folder = prepared / storage / "train"
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError, match=r"train: damaged .*prepare the data again"):
            open_store(prepared / storage).split("train")
        path.write_bytes(whole)
    open_store(prepared / storage).split("train")
    shutil.rmtree(folder)
    with pytest.raises(DataError, match="split 'train' is missing"):
        open_store(prepared / storage).split("train")


@pytest.mark.parametrize("storage", STORAGES)
def test_a_changed_value_is_found_by_its_hash(prepared, storage):
    folder = prepared / storage / "train"
    path = next(path for path in sorted(folder.iterdir()) if path.suffix == ".arrow" or path.name == "audio.npy")
    value = open_store(prepared / storage).split("train")[5]["audio"][0, 0].tobytes()
    content = path.read_bytes()
    assert content.count(value) == 1
    path.write_bytes(content.replace(value, np.float32(0.123).tobytes()))
    with pytest.raises(DataError, match=r"split 'train' is not what was prepared: its sha256 differs"):
        open_store(prepared / storage).split("train")  # without being asked to verify
    assert len(open_store(prepared / storage).split("valid"))


def test_a_changed_manifest_is_found_by_its_hash(prepared):
    """Its standardisation and dimensions decide what is computed, and stand in no split."""
    path = prepared / "numpy" / "manifest.json"
    path.write_text(path.read_text().replace('"frame_rate": null', '"frame_rate": 7.5'))
    with pytest.raises(DataError, match=r"manifest\.json: damaged or edited: its sha256 is not the one"):
        open_store(prepared / "numpy")
    (prepared / "numpy" / "manifest.sha256").unlink()  # as the first version wrote it
    assert open_store(prepared / "numpy").modalities["audio"]["frame_rate"] == 7.5


@pytest.mark.parametrize(
    "change",
    [
        {"splits": []},
        {"splits": {"train": 3}},
        {"splits": {"train": {"rows": "3", "sha256": "x"}}},
        {"splits": {"train": {"rows": 3}}},
        {"modalities": {"audio": {"dim": None}}},
        {"modalities": "audio"},
        {"notes": {}},
        {"dataset": ["mosi"]},
    ],
)
def test_a_manifest_of_other_kinds_is_one_error(prepared, change):
    path = prepared / "numpy" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    (prepared / "numpy" / "manifest.sha256").unlink()
    with pytest.raises(DataError, match=r"manifest\.json: damaged \("):
        open_store(prepared / "numpy")


def test_rows_and_dimensions_must_be_the_manifests(prepared):
    path = prepared / "arrow" / "manifest.json"
    path.with_name("manifest.sha256").unlink()
    manifest = json.loads(path.read_text())
    manifest["splits"]["train"]["rows"] = 11
    manifest["modalities"]["audio"]["dim"] = 2
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"holds \{'audio': 3, 'vision': 4\}, but the manifest says \{'audio': 2"):
        open_store(prepared / "arrow").split("train")
    manifest["modalities"]["audio"]["dim"] = 3
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="not the 11 rows of its manifest"):
        open_store(prepared / "arrow").split("train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no data directory \(no manifest.json\)"),
        ("{", "damaged"),
        ("[]", "layout version None, expected 1"),
        ('{"schema": 99}', "layout version 99, expected 1: prepare the data again"),
        ('{"schema": 1}', "missing or unknown: dataset, labels"),
    ],
)
def test_bad_manifest(tmp_path, content, message):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=message):
        open_store(tmp_path)


def test_without_datasets_numpy_works_and_arrow_says_why_not(prepared, write_pickle, tree, monkeypatch):
    monkeypatch.setattr(storage_module, "installed", lambda name: False)
    monkeypatch.setitem(sys.modules, "datasets", None)
    open_store(prepared / "numpy").verify()
    with pytest.raises(MissingPackageError, match=r"in Arrow, which needs the package datasets: pip install "):
        open_store(prepared / "arrow").split("train")
    with pytest.raises(MissingPackageError, match=r"pip install .*; or choose the storage numpy"):
        prepare(write_pickle(tree), "mosi", prepared / "new")
    assert not (prepared / "new").exists()
