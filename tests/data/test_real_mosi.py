"""The real CMU-MOSI files, where the reference data lie beside the checkout."""

from __future__ import annotations

import json

import numpy as np
import pytest

from deepmlf_llm.data.prepare import prepare
from deepmlf_llm.data.store import open_store

REAL = {
    "mosi_utterance.pkl": {"sizes": (1082, 229, 202), "dims": (73, 100), "frames": (1, 0), "absent": (0, 1513)},
    "mosi_sequence_whisper.pkl": {"sizes": (269, 67, 63), "dims": (512, 143), "frames": (66, 133), "absent": (0, 0)},
}


@pytest.mark.parametrize("file", REAL)
def test_real_mosi(shared_dir, tmp_path, file):
    source = shared_dir / "data" / file
    if not source.is_file():
        pytest.skip(f"needs {file} in the reference data")
    manifest = prepare(source, "mosi", tmp_path / "out", frame_rates={"audio": 5, "vision": 10})
    expected, facts = REAL[file], manifest.modalities.values()
    assert tuple(split["rows"] for split in manifest.splits.values()) == expected["sizes"]
    assert tuple(modality["dim"] for modality in facts) == expected["dims"]
    assert tuple(modality["frames"]["max"] for modality in facts) == expected["frames"]
    assert tuple(sum(modality["absent"].values()) for modality in facts) == expected["absent"]
    assert manifest.text["words"]["median"] == 10
    published = (shared_dir / "data" / "README.md").read_text()
    assert f"{manifest.source['sha256']}  {file}" in published
    store = open_store(tmp_path / "out")
    item = store.split("train")[0]
    assert item["text"] == "anyhow it was really good"
    assert item["audio"].dtype == item["vision"].dtype == np.float32
    for ragged in store.split("train").features.values():
        assert np.isfinite(ragged.values).all()
    assert abs(store.split("train").features["audio"].values.mean()) < 1e-3
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["labels"]["range"] == [-3.0, 3.0]


def test_real_label_table_agrees_with_the_pickle(shared_dir, tmp_path):
    table, source = (shared_dir / "data" / name for name in ("mosi_label.csv", "mosi_utterance.pkl"))
    if not (table.is_file() and source.is_file()):
        pytest.skip("needs the MOSI files in the reference data")
    folder = tmp_path / "folder"
    (folder / "audio").mkdir(parents=True)
    (folder / "label.csv").write_bytes(table.read_bytes())
    for name in ("03bSnISJMiM$_$11", "WKA5OygbEKI$_$1", "0h-zjBukYpk$_$1"):
        np.save(folder / "audio" / f"{name}.npy", np.ones((2, 3)))
    manifest = prepare(folder, "mosi", tmp_path / "a")
    prepare(source, "mosi", tmp_path / "b")
    assert sum(manifest.modalities["audio"]["absent"].values()) == 1510
    for split in ("train", "valid", "test"):
        ours, theirs = (open_store(tmp_path / name).split(split) for name in "ab")
        assert dict(zip(ours.ids, ours.texts, strict=True)) == dict(zip(theirs.ids, theirs.texts, strict=True))
        by_id = dict(zip(theirs.ids, theirs.labels.tolist(), strict=True))
        np.testing.assert_allclose(ours.labels, [by_id[name] for name in ours.ids], atol=1e-3)
