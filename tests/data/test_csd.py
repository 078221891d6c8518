"""CMU-MultimodalSDK's computational sequences, on files that these tests write with the SDK's layout."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from deepmlf_llm.data.csd import overlapping
from deepmlf_llm.data.prepare import prepare
from deepmlf_llm.data.sources import open_source
from deepmlf_llm.errors import DataError, MissingPackageError

h5py = pytest.importorskip("h5py", reason="needs h5py (the extra [data])")

VIDEOS = {"v_a": 2, "v-b": 1, "c": 1}  # and how many segments have a label
LABELS = {"v_a": [1.5, -2.0], "v-b": [0.0], "c": [3.0]}


def write_csd(path, name, videos, mode="w"):
    """A computational sequence: name -> (features, intervals)."""
    with h5py.File(path, mode) as file:
        root = file.create_group(name)
        data = root.create_group("data")
        for video, (features, intervals) in videos.items():
            group = data.create_group(video)
            group.create_dataset("features", data=features)
            group.create_dataset("intervals", data=np.asarray(intervals, dtype=np.float32))
        root.create_group("metadata").create_dataset("root name", data=json.dumps(name))


def steps(count, width=1.0, start=0.0):
    begins = start + width * np.arange(count)
    return np.stack([begins, begins + width], axis=1)


def words_of(video):
    words = [b"sp", *(f"{video}{second}".encode() for second in range(1, 7)), b"sp"]
    return np.array(words, dtype="S32")[:, None], steps(8)


@pytest.fixture
def folder(tmp_path):
    """Segments are seconds 1 to 3 (and 4 to 6.5 in the first video); audio has 4 frames a second, vision 2."""
    directory = tmp_path / "mosi"
    directory.mkdir()
    segments = [[1.0, 3.0], [4.0, 6.5]]
    labels = {v: (np.array(LABELS[v])[:, None], segments[: VIDEOS[v]]) for v in VIDEOS}
    write_csd(directory / "CMU_MOSI_Opinion_Labels.csd", "Opinion Segment Labels", labels)
    write_csd(directory / "words.csd", "words", {v: words_of(v) for v in VIDEOS})
    order = np.random.default_rng(0).permutation(32)
    audio = np.arange(32.0)[:, None] * [1, 10, 100]
    covarep = {v: (audio[order], steps(32, 0.25)[order]) for v in VIDEOS}  # not in the order of time
    covarep.pop("c")
    write_csd(directory / "covarep.csd", "COVAREP", covarep)
    facet = {v: (np.arange(16.0)[:, None] * [1, 2], steps(16, 0.5)) for v in VIDEOS}
    write_csd(directory / "facet.csd", "FACET_4.2", facet)
    write_csd(directory / "glove.csd", "glove_vectors", {v: (np.ones((8, 300)), steps(8)) for v in VIDEOS})
    (directory / "splits.json").write_text(json.dumps({"train": ["v_a"], "dev": ["v-b"], "test": ["c"]}))
    return directory


def test_segments_take_what_overlaps_them_in_the_order_of_time(folder):
    corpus = open_source(folder, "mosi")
    train = corpus.splits["train"]
    assert train.ids == ["v_a[0]", "v_a[1]"]
    assert train.texts == ["v_a1 v_a2", "v_a4 v_a5 v_a6"]
    np.testing.assert_array_equal(train.labels, [1.5, -2.0])
    assert list(train.features) == ["audio", "vision"]
    np.testing.assert_array_equal(train.features["audio"][0][:, 0], range(4, 12))
    np.testing.assert_array_equal(train.features["audio"][1][:, 1], 10 * np.arange(16, 26))
    np.testing.assert_array_equal(train.features["vision"][1], np.arange(8, 13)[:, None] * [1, 2])
    assert corpus.splits["valid"].ids == ["v-b[0]"]
    assert len(corpus.splits["test"].features["audio"][0]) == 0  # not in COVAREP: absent
    assert corpus.notes == [
        "left out: glove_vectors (the words are read instead)",
        "'covarep' was read as audio",
        "'facet_4_2' was read as vision",
    ]


def test_prepared_whole(folder, tmp_path):
    manifest = prepare(folder, "mosi", tmp_path / "out", storage="numpy")
    assert manifest.source["kind"] == "csd"
    assert manifest.modalities["audio"]["absent"] == {"train": 0, "valid": 0, "test": 1}


def test_files_that_the_sdk_aligned_are_taken_as_they_are(folder):
    write_csd(folder / "words.csd", "words", {"v_a[0]": words_of("x"), "v_a[1]": words_of("y"), "v-b": words_of("z")})
    segments = {"v_a[0]": (np.array([[1.5]]), [[1, 3]]), "v_a[1]": (np.array([[-2.0]]), [[4, 6.5]])}
    others = {v: (np.array(LABELS[v])[:, None], [[1.0, 3.0]]) for v in ("v-b", "c")}
    write_csd(folder / "CMU_MOSI_Opinion_Labels.csd", "Opinion Segment Labels", segments | others)
    corpus = open_source(folder, "mosi")
    assert corpus.splits["train"].ids == ["v_a[0]", "v_a[1]"]
    assert corpus.splits["train"].texts[1] == "y1 y2 y3 y4 y5 y6"
    assert corpus.splits["test"].texts == [""]
    assert "1 transcripts of test are empty (such as that of 'c[0]')" in corpus.notes


@pytest.mark.parametrize(
    ("begin", "end", "kept"),
    [(1, 2, [1]), (0.9995, 2.0005, [1]), (1.2, 1.3, [1]), (0.5, 2.5, [0, 1, 2]), (9, 10, []), (2, 2, [])],
)
def test_overlap_is_more_than_rounding(begin, end, kept):
    np.testing.assert_array_equal(np.flatnonzero(overlapping(steps(4), begin, end)), kept)


def test_points_in_time_belong_where_they_fall():
    points = np.array([[1.0, 1.0], [2.0, 2.0]])
    np.testing.assert_array_equal(overlapping(points, 1, 2), [True, False])


def test_two_extractors_keep_their_names_and_can_be_chosen(folder):
    write_csd(folder / "is09.csd", "OpenSMILE IS09", {v: (np.ones((8, 5)), steps(8)) for v in VIDEOS})
    assert list(open_source(folder, "mosi").splits["train"].features) == ["covarep", "vision", "opensmile_is09"]
    corpus = open_source(folder, "mosi", modalities=["audio", "vision"], rename={"opensmile_is09": "audio"})
    assert corpus.splits["train"].features["audio"][0].shape == (2, 5)


def test_mosei_labels_are_sentiment_first(folder):
    seven = {v: (np.arange(7.0)[None].repeat(VIDEOS[v], 0) - 1, [[1.0, 3.0], [4.0, 6.5]][: VIDEOS[v]]) for v in VIDEOS}
    write_csd(folder / "CMU_MOSI_Opinion_Labels.csd", "All Labels", seven)
    np.testing.assert_array_equal(open_source(folder, "mosei").splits["train"].labels, [-1.0, -1.0])
    with pytest.raises(DataError, match="sentiment and six emotions"):
        open_source(folder, "mosi")


def _remove(name):
    return lambda folder: (folder / name).unlink()


def _splits(content):
    return lambda folder: (folder / "splits.json").write_text(content)


def _bytes(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def _csd(name, root, features, intervals):
    return lambda folder: write_csd(folder / name, root, dict.fromkeys(VIDEOS, (features, intervals)))


def _cut(folder):
    path = folder / "covarep.csd"
    path.write_bytes(path.read_bytes()[:-3000])


def _outside(folder):
    with h5py.File(folder / "covarep.csd", "w") as file:
        file.create_group("COVAREP")["data"] = h5py.ExternalLink("facet.csd", "FACET_4.2/data")


def _huge(folder):
    with h5py.File(folder / "covarep.csd", "w") as file:
        group = file.create_group("COVAREP/data/v_a")
        group.create_dataset("features", shape=(1 << 40, 74), chunks=(1024, 74), dtype="f4")
        group.create_dataset("intervals", data=steps(2))


def test_odd_intervals_of_features_are_counted(folder):
    intervals = [[2, 1], [1.5, 2], [np.nan, 2]]
    write_csd(folder / "facet.csd", "FACET", {video: (np.arange(3.0)[:, None], intervals) for video in VIDEOS})
    corpus = open_source(folder, "mosi")
    np.testing.assert_array_equal(corpus.splits["train"].features["vision"][0], [[1.0]])
    assert "6 intervals of FACET end before they begin and belong to no segment" in corpus.notes


FAULTS = {
    "no labels": (_remove("CMU_MOSI_Opinion_Labels.csd"), "expected one sequence of labels .* found 0 among 'COVAREP'"),
    "no words": (_remove("words.csd"), "expected one sequence of words"),
    "no splits": (_remove("splits.json"), "splits.json: missing.*standard_train_fold"),
    "splits of other videos": (_splits('{"train": ["x"]}'), "names no video that has labels"),
    "splits that are no JSON": (_splits("train: v_a"), "is not JSON"),
    "splits without a split": (_splits('{"all": ["v_a"]}'), "no split in it"),
    "a video in two splits": (_splits('{"train": ["c"], "test": ["c"]}'), "'c' is in train and in test"),
    "splits of numbers": (_splits('{"train": [1]}'), "train is not a list of ids"),
    "a pointer": (_bytes("facet.csd", b"version https://git-lfs.github.com/spec/v1\noid"), "a pointer of git LFS"),
    "cut off": (_cut, "damaged or cut off|cannot be read, or is damaged"),
    "other HDF5": (lambda folder: h5py.File(folder / "facet.csd", "w").close(), "no computational sequence"),
    "intervals missing": (_csd("facet.csd", "FACET", np.ones((3, 2)), steps(2)), "intervals are float32 of shape"),
    "segments of NaN": (_csd("CMU_MOSI_Opinion_Labels.csd", "Labels", [[1.0]], [[0, np.nan]]), "before they begin, or"),
    "backward segments": (_csd("CMU_MOSI_Opinion_Labels.csd", "Labels", [[1.0]], [[2, 1]]), "end before they begin"),
    "an external link": (_outside, r"data is a link into another file \(facet.csd\), which is not followed"),
    "more than the file holds": (_huge, "says it has 325455441821696 bytes, and the file holds 0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(folder, fault):
    change, message = FAULTS[fault]
    change(folder)
    with pytest.raises(DataError, match=message):
        open_source(folder, "mosi")


def test_damaged_bytes_are_an_error_of_ours(folder):
    path = folder / "covarep.csd"
    sizes = [len(split) for split in open_source(folder, "mosi").splits.values()]
    whole, random = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(30):
        content = bytearray(whole)
        content[int(random.integers(len(content)))] ^= 1 << int(random.integers(8))
        content[int(random.integers(3000))] = int(random.integers(256))
        path.write_bytes(content)
        try:
            corpus = open_source(folder, "mosi")
        except DataError:
            refused += 1
        else:  # what was hit says nothing of the data, or is a feature's value
            assert [len(split) for split in corpus.splits.values()] == sizes
    assert 0 < refused < 30


def test_without_h5py_one_sentence_says_how_to_get_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingPackageError, match=r"needs the package h5py: pip install 'deepmlf_llm\[data\]'"):
        open_source(folder, "mosi")
