"""Folds over videos: each utterance is tested once, no video is in two splits, the statistics are the fold's own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepmlf_llm.data.folds import Fold, assign_videos
from deepmlf_llm.data.prepare import prepare
from deepmlf_llm.data.store import open_store
from deepmlf_llm.errors import ConfigError, DataError


@pytest.fixture
def source(write_pickle, tree):
    """Twenty-one utterances of seven videos, three of which are in two of the source's splits."""
    number = 0
    for split in tree.values():
        for row in range(len(split["id"])):
            split["id"][row] = f"video{number % 7}$_${number}"
            number += 1
    return write_pickle(tree)


def test_each_utterance_is_tested_once(source, tree, tmp_path):
    tested, everything = [], {identity for split in tree.values() for identity in split["id"]}
    for number in range(3):
        prepare(source, "mosi", tmp_path / str(number), fold=Fold(number, 3))
        store = open_store(tmp_path / str(number))
        ids = {split: list(store.split(split).ids) for split in ("train", "valid", "test")}
        videos = [{identity.split("$_$")[0] for identity in split} for split in ids.values()]
        assert sum(map(len, videos)) == len(set.union(*videos)) == 7
        assert sorted(identity for split in ids.values() for identity in split) == sorted(everything)
        assert store.manifest.settings["fold"] == f"{number}/3"
        tested.append(ids)
    assert sorted(identity for ids in tested for identity in ids["test"]) == sorted(everything)
    assert all(tested[k]["valid"] == tested[(k + 1) % 3]["test"] for k in range(3))


def test_rows_stay_whole_and_standardised_by_the_fold(source, tree, tmp_path):
    manifest = prepare(source, "mosi", tmp_path / "out", fold=Fold(1, 3))
    rows = {
        identity: (split["audio"][i][: split["audio_lengths"][i]], split["regression_labels"][i])
        for split in tree.values()
        for i, identity in enumerate(split["id"])
    }
    train = open_store(tmp_path / "out").split("train")
    frames = np.concatenate([rows[identity][0] for identity in train.ids]).astype(np.float64)
    np.testing.assert_allclose(manifest.modalities["audio"]["standardisation"]["mean"], frames.mean(0))
    np.testing.assert_allclose(train.labels, [rows[identity][1] for identity in train.ids], atol=1e-6)
    np.testing.assert_allclose(train.features["audio"].values, (frames - frames.mean(0)) / frames.std(0), atol=1e-4)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.integers(3, 8), st.randoms(use_true_random=False))
def test_folds_are_about_as_large_and_do_not_depend_on_order(numbers, folds, random):
    videos = [f"v{number}" for number in numbers]
    if len(set(videos)) < folds:
        with pytest.raises(DataError, match="expected at least one for each"):
            assign_videos(videos, folds)
        return
    found = assign_videos(videos, folds)
    sizes = [sum(found[video] == fold for video in videos) for fold in range(folds)]
    assert max(sizes) - min(sizes) <= max(map(videos.count, videos))
    assert min(sizes) > 0
    shuffled = list(videos)
    random.shuffle(shuffled)
    assert assign_videos(shuffled, folds) == found


@pytest.mark.parametrize("text", ["", "5", "a/b", "5/5", "0/2", "-1/5", "0/101", "1/3/5"])
def test_what_is_no_fold(text):
    with pytest.raises(ConfigError, match="expected K/N"):
        Fold.parse(text)


def test_what_has_no_videos_is_refused(write_pickle, tree, tmp_path):
    tree["valid"]["id"][2] = "plain"
    with pytest.raises(DataError, match=r"'plain' names no video; folds need ids such as VIDEO\$_\$CLIP"):
        prepare(write_pickle(tree), "mosi", tmp_path / "out", fold=Fold(0, 3))
    tree["valid"]["id"][2] = tree["test"]["id"][0]
    with pytest.raises(DataError, match="stands twice"):
        prepare(write_pickle(tree), "mosi", tmp_path / "out", fold=Fold(0, 3))
    assert not (tmp_path / "out").exists()


def test_not_with_like(source, tmp_path):
    prepare(source, "mosi", tmp_path / "first")
    with pytest.raises(ConfigError, match="prepared like other data is evaluated whole"):
        prepare(source, "mosi", tmp_path / "out", like=tmp_path / "first", fold=Fold(0, 3))
