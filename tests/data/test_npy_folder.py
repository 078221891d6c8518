from __future__ import annotations

import csv
import os
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
        "column label holds what is not a number": [[*rows[0][:3], "good", *rows[0][4:]], *rows[1:]],
    }
    for message, changed in cases.items():
        write_table(folder, changed)
        with pytest.raises(DataError, match=message):
            read_npy_folder(folder)
    write_table(folder, [row[:-1] for row in rows], COLUMNS[:-1])
    with pytest.raises(DataError, match="lacks the columns mode"):
        read_npy_folder(folder)
    (folder / "label.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is text in UTF-16"):
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
        (b"", r"is empty \(0 bytes\)"),
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
    with pytest.raises(DataError, match="labels are not a number"):
        prepare(folder, "mosi", tmp_path / "out")


def _first(folder):
    return folder / "audio" / "validvideo$_$0.npy"


@pytest.mark.parametrize(
    "array",
    [
        np.ones((2, 3), "f2"),
        np.ones((2, 3), ">f8"),
        np.ones((2, 3), "i1"),
        np.ones((2, 3), bool),
        np.asfortranarray(np.ones((2, 3))),
        np.ones((2, 3), np.longdouble),
    ],
)
def test_any_real_number_is_read(folder, array):
    np.save(_first(folder), array)
    np.testing.assert_array_equal(read_npy_folder(folder).splits["valid"].features["audio"][0], np.ones((2, 3)))


@pytest.mark.parametrize("shape", [(0, 3), (0,), (0, 0)])
def test_no_frames_in_any_shape_is_absent(folder, shape):
    np.save(_first(folder), np.empty(shape))
    assert read_npy_folder(folder).splits["valid"].features["audio"][0].shape == (0, 3)


@pytest.mark.parametrize("name", ["{clip}.npy", "{video}$_${clip}.npy", "{video}_{clip}.NPY", "{clip}.npz"])
def test_one_folder_a_video_and_npz(folder, name):
    whole = read_npy_folder(folder)
    for path in list((folder / "audio").iterdir()):
        video, clip = path.stem.split("$_$")
        target = folder / "audio" / video / name.format(video=video, clip=clip)
        target.parent.mkdir(exist_ok=True)
        if target.suffix == ".npz":
            np.savez_compressed(target, features=np.load(path))
            path.unlink()
        else:
            path.rename(target)
    nested = read_npy_folder(folder)
    assert nested.notes == []
    for split, rows in whole.splits.items():
        for ours, theirs in zip(nested.splits[split].features["audio"], rows.features["audio"], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_links_are_followed_and_told(folder, tmp_path):
    whole = read_npy_folder(folder)
    path = _first(folder)
    path.rename(tmp_path / "elsewhere.npy")
    path.symlink_to(tmp_path / "elsewhere.npy")
    (folder / "vision").rename(tmp_path / "features")
    (folder / "vision").symlink_to(tmp_path / "features")
    corpus = read_npy_folder(folder)
    assert corpus.notes == [
        "1 files of audio are links to files outside of the folder (such as validvideo$_$0.npy)",
        "21 files of vision are links to files outside of the folder (such as testvideo_0.npy)",
    ]
    assert corpus.source["sha256"] == whole.source["sha256"]


def test_folders_under_other_names_and_of_text_features(folder):
    (folder / "vision").rename(folder / "visual")
    (folder / "text").mkdir()
    np.save(folder / "text" / "trainvideo$_$0.npy", np.ones((2, 768)))
    (folder / "audio" / "._trainvideo$_$0.npy").write_bytes(b"macOS")
    corpus = read_npy_folder(folder)
    assert corpus.notes == ["left out: text (text features are not needed)", "'visual' was read as vision"]
    assert list(corpus.splits["train"].features) == ["audio", "vision"]
    assert list(read_npy_folder(folder, ["visual"]).splits["train"].features) == ["visual"]


def test_folders_without_a_file_are_told(folder):
    (folder / "visual").mkdir()
    (folder / "acoustic").symlink_to("acoustic")
    (folder / "audio" / "orphan.npy").symlink_to("orphan.npy")
    assert read_npy_folder(folder).notes == [
        "acoustic is left out: there is no .npy or .npz file in it",
        "visual is left out: there is no .npy or .npz file in it",
        "1 files of audio belong to no row of label.csv",
    ]


@pytest.mark.parametrize("target", [None, "nowhere", "label.csv"])
def test_what_stands_in_the_place_of_the_table_is_named(folder, target):
    (folder / "label.csv").unlink()
    if target is None:
        (folder / "label.csv").mkdir()
    else:
        (folder / "label.csv").symlink_to(target)
    with pytest.raises(DataError, match=r"label.csv: (is not an ordinary file|no such file, a link to)"):
        read_npy_folder(folder)


def _fifo(path):
    path.unlink()
    os.mkfifo(path)


def _link(target):
    def change(path):
        path.unlink()
        path.symlink_to(target)

    return change


def _zip(**arrays):
    def change(path):
        path.unlink()
        np.savez(path.with_suffix(".npz"), **arrays)

    return change


def _bytes(content):
    return lambda path: path.write_bytes(content)


FILES = {
    "a pipe": (_fifo, r"validvideo\$_\$0.npy: is not an ordinary file"),
    "a directory": (lambda path: (path.unlink(), path.mkdir()), "is not an ordinary file"),
    "a broken link": (_link("/nowhere/x.npy"), "is a link to what is not there"),
    "a link to itself": (_link("validvideo$_$0.npy"), "is a link to what is not there"),
    "a link to other things": (_link("/etc/passwd"), "no plain numpy array: is text"),
    "a page": (_bytes(b"<html>"), "no plain numpy array: is a web page"),
    "a pointer": (
        _bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        "no plain numpy array: is a pointer of git LFS",
    ),
    "two arrays": (_zip(a=np.ones((2, 3)), b=np.ones(2)), "expected one array, found a, b"),
    "no array": (_zip(), r"is a zip archive \(empty\)"),
    "objects in a zip": (_zip(a=np.array([{}], dtype=object)), "an object array, which is a pickle: save the numbers"),
    "two files": (
        lambda path: np.savez(path.with_suffix(".npz"), a=1),
        r"both validvideo\$_\$0.npy and .*npz are there",
    ),
    "two names": (
        lambda path: np.save(path.with_name("validvideo_0.npy"), np.ones((2, 3))),
        "clip '0' of video 'validvideo' has several files",
    ),
}


@pytest.mark.parametrize("fault", FILES)
def test_odd_files_are_named(folder, fault):
    change, message = FILES[fault]
    change(_first(folder))
    with pytest.raises(DataError, match=message):
        read_npy_folder(folder)


def test_a_header_that_promises_terabytes_costs_nothing(folder):
    with _first(folder).open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 3)})
    with pytest.raises(DataError, match="no plain numpy array"):
        read_npy_folder(folder)


def test_names_that_two_rows_share_are_refused(folder):
    rows = [["a_b", "c", "x", "1", "", "", "", "", "train"], ["a", "b_c", "x", "1", "", "", "", "", "test"]]
    write_table(folder, rows)
    np.save(folder / "audio" / "a_b_c.npy", np.ones((2, 3)))
    with pytest.raises(
        DataError, match=r"a_b_c.npy: would belong to row 2 and to row 3 of label.csv; name it with \$_\$"
    ):
        read_npy_folder(folder)


def test_recordings_in_the_place_of_features_are_named(folder):
    for name in ("audio", "vision"):
        for path in (folder / name).iterdir():
            path.rename(path.with_suffix(".wav"))
    with pytest.raises(DataError, match=r"audio/ holds \.wav; vision/ holds \.wav: features have to be extracted"):
        read_npy_folder(folder)


@pytest.mark.parametrize("content", [b"<html>", b"PK\x03\x04xx", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_table_that_is_none_is_named(folder, content):
    (folder / "label.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"label.csv: is a (web page|zip archive|pointer)"):
        read_npy_folder(folder)
