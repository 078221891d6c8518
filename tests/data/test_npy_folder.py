from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from deepmlf_llm.data.prepare import prepare
from deepmlf_llm.data.sources import open_source
from deepmlf_llm.data.store import open_store
from deepmlf_llm.errors import DataError


def read_npy_folder(directory, modalities=None):
    return open_source(directory, "mosi", modalities=modalities)


COLUMNS = ["video_id", "clip_id", "text", "label", "label_T", "label_A", "label_V", "annotation", "mode"]


@pytest.fixture
def folder(tmp_path: Path, tree) -> Path:
    """The test source as a folder: audio under one naming, vision under the other, some files missing or empty."""
    directory = tmp_path / "clips"
    with_rows = []
    for split, content in tree.items():
        for row, name in enumerate(content["id"]):
            video, clip = name.split("$_$")
            label = f"{content['regression_labels'][row]:.6f}"
            with_rows.append([video, clip, content["raw_text"][row], label, "0.5", "", "", "Positive", split])
            for modality, file in (("audio", f"{video}$_${clip}"), ("vision", f"{video}_{clip}")):
                frames = content[modality][row][: content[f"{modality}_lengths"][row]]
                (directory / modality).mkdir(parents=True, exist_ok=True)
                np.save(directory / modality / f"{file}.npy", frames)
    (directory / "audio" / "trainvideo$_$0.npy").unlink()
    np.save(directory / "vision" / "trainvideo_1.npy", np.empty((0, 4)))
    np.save(directory / "audio" / "trainvideo$_$2.npy", np.arange(3.0))
    write_table(directory, with_rows)
    return directory


def write_table(directory: Path, rows: list[list[str]], columns: list[str] = COLUMNS) -> None:
    with (directory / "label.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


def read_table(directory: Path) -> list[list[str]]:
    with (directory / "label.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


def test_reads_what_was_written(folder, tree):
    corpus = read_npy_folder(folder)
    assert corpus.source["kind"] == "npy_folder"
    assert corpus.source["name"] == "clips"
    assert corpus.notes == []
    for split, content in tree.items():
        rows = corpus.splits[split]
        assert rows.ids == content["id"]
        assert rows.texts == content["raw_text"]
        np.testing.assert_allclose(rows.labels, content["regression_labels"], atol=1e-6)
        assert list(rows.unimodal) == ["T"]
        for name, sequences in rows.features.items():
            for index, frames in enumerate(sequences):
                if split == "train" and index <= 2:
                    continue
                np.testing.assert_array_equal(frames, content[name][index][: content[f"{name}_lengths"][index]])
    train = corpus.splits["train"].features
    assert train["audio"][0].shape == (0, 3)  # no file
    assert train["vision"][1].shape == (0, 4)  # no frames
    np.testing.assert_array_equal(train["audio"][2], [[0, 1, 2]])  # one vector


def test_prepares_to_the_same_values_as_the_pickle(folder, tree, write_pickle, tmp_path):
    tree["train"]["audio_lengths"][0] = 0
    tree["train"]["vision_lengths"][1] = 0
    tree["train"]["audio"][2][0] = [0, 1, 2]
    tree["train"]["audio_lengths"][2] = 1
    manifest = prepare(folder, "mosi", tmp_path / "a")
    prepare(write_pickle(tree), "mosi", tmp_path / "b")
    assert manifest.modalities["audio"]["absent"] == {"train": 1, "valid": 0, "test": 0}
    assert manifest.modalities["vision"]["absent"]["train"] == 1
    for split in tree:
        ours, theirs = (open_store(tmp_path / name).split(split) for name in "ab")
        for name, ragged in ours.features.items():
            np.testing.assert_array_equal(ragged.offsets, theirs.features[name].offsets)
            np.testing.assert_array_equal(ragged.values, theirs.features[name].values)


def test_hash_covers_the_features_too(folder):
    before = read_npy_folder(folder).source["sha256"]
    assert read_npy_folder(folder).source["sha256"] == before
    np.save(folder / "audio" / "testvideo$_$0.npy", np.ones((2, 3)))
    assert read_npy_folder(folder).source["sha256"] != before


def test_chosen_modalities_and_files_of_no_row(folder):
    np.save(folder / "vision" / "othervideo_1.npy", np.ones((2, 4)))
    corpus = read_npy_folder(folder, ["vision"])
    assert list(corpus.splits["train"].features) == ["vision"]
    assert corpus.notes == ["1 files of vision belong to no row of label.csv"]
    with pytest.raises(DataError, match=r"no modality 'audios' \(did you mean 'audio'\?\)"):
        read_npy_folder(folder, ["audios"])


def test_table_faults(folder):
    rows = read_table(folder)
    cases = {
        "row 2 has mode 'held', expected one of train, valid, test": [[*rows[0][:-1], "held"], *rows[1:]],
        "row 17 repeats clip '1' of video 'trainvideo'": [*rows[:15], rows[1]],
        "column label holds what is no number": [[*rows[0][:3], "good", *rows[0][4:]], *rows[1:]],
    }
    for message, changed in cases.items():
        write_table(folder, changed)
        with pytest.raises(DataError, match=message):
            read_npy_folder(folder)
    write_table(folder, [row[:-1] for row in rows], COLUMNS[:-1])
    with pytest.raises(DataError, match="lacks the columns mode"):
        read_npy_folder(folder)
    (folder / "label.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="no CSV table in UTF-8"):
        read_npy_folder(folder)
    (folder / "label.csv").unlink()
    with pytest.raises(DataError, match=r"no label\.csv"):
        read_npy_folder(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.ones((2, 9)), "files differ in dimension: 3, 9"),
        (np.ones((2, 3, 1)), r"of shape \(2, 3, 1\), expected numbers"),
        (np.array(["a"]), "holds strings"),
        (np.array([{"a": 1}], dtype=object), "no plain numpy array"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (99", "no plain numpy array"),
        (b"", "no plain numpy array"),
    ],
)
def test_bad_arrays(folder, content, message):
    path = folder / "audio" / "validvideo$_$0.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        read_npy_folder(folder)


def test_names_that_match_no_row(folder):
    for path in (folder / "vision").iterdir():
        path.rename(path.with_stem("x" + path.stem))
    with pytest.raises(DataError, match=r"no file belongs to a row of label\.csv; expected <video_id>"):
        read_npy_folder(folder)


def test_empty_label_cells_are_no_labels(folder, tmp_path):
    rows = read_table(folder)
    write_table(folder, [[*rows[0][:3], "", *rows[0][4:]], *rows[1:]])
    with pytest.raises(DataError, match="labels are no number"):
        prepare(folder, "mosi", tmp_path / "out")
