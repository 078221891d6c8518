"""Features standardised within each video: against the formula, split by split, and known to whoever reads them."""

from __future__ import annotations

import numpy as np
import pytest

from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.data.columns import Columns
from deepmlf_llm.data.facts import FeatureRecipe, feature_problems
from deepmlf_llm.data.inputs import open_input
from deepmlf_llm.data.labelled import open_labelled
from deepmlf_llm.data.prepare import prepare
from deepmlf_llm.data.ragged import Ragged
from deepmlf_llm.data.report import report_rows
from deepmlf_llm.data.store import open_store
from deepmlf_llm.data.videos import standardise_within, videos_of
from deepmlf_llm.errors import ConfigError, DataError
from deepmlf_llm.media.recipe import fingerprint
from tests.data.conftest import make_tree


@pytest.fixture
def tree():
    """Rows of a split come from three videos each, none of them in two splits."""
    tree = make_tree()
    for split, content in tree.items():
        content["id"] = [f"{split}{row % 3}$_${row}" for row in range(len(content["id"]))]
    return tree


def own(split, name, video):
    """The real frames of a video, and how many each of its rows has."""
    rows = [row for row, identity in enumerate(split["id"]) if identity.startswith(f"{video}$_$")]
    frames = [split[name][row][: split[f"{name}_lengths"][row]].astype(np.float64) for row in rows]
    return rows, np.concatenate(frames), [len(part) for part in frames]


def test_each_video_has_mean_0_and_deviation_1_of_its_own():
    random = np.random.default_rng(0)
    lengths = [3, 1, 4, 2, 5]
    frames = Ragged.from_sequences([random.normal(row * 10, 1 + row, (t, 2)) for row, t in enumerate(lengths)], 2)
    before, videos = [part.copy() for part in frames], ["a", "b", "a", "c", "b"]
    assert standardise_within(frames, videos).to_dict() == {
        "nan": 0, "positive_inf": 0, "negative_inf": 0, "clipped": 0
    }  # fmt: skip
    for video in "abc":
        together = np.concatenate([part for part, owner in zip(before, videos, strict=True) if owner == video])
        for row in (row for row, owner in enumerate(videos) if owner == video):
            expected = (before[row] - together.mean(0)) / together.std(0)
            np.testing.assert_allclose(frames[row], expected, atol=1e-5)


def test_what_does_not_vary_or_is_no_number_is_the_videos_mean():
    nan, infinite = np.nan, np.inf
    frames = Ragged.from_sequences(
        [np.array([[5.0, 1.0, nan]]), np.array([[7.0, nan, 2.0], [8.0, 3.0, -infinite]]), np.empty((0, 3))], 3
    )
    counts = standardise_within(frames, ["alone", "two", "none"])
    np.testing.assert_allclose(frames.values, [[0, 0, 0], [-1, 0, 0], [1, 0, 0]], atol=1e-6)
    assert (counts.nan, counts.negative_inf) == (2, 1)


def test_prepared_by_video_then_over_the_training_split(write_pickle, tree, tmp_path):
    manifest = prepare(write_pickle(tree), "mosi", tmp_path / "by", standardised_by="video")
    store = open_store(tmp_path / "by")
    deviation = np.array(manifest.modalities["audio"]["standardisation"]["std"])
    np.testing.assert_allclose(manifest.modalities["audio"]["standardisation"]["mean"], 0, atol=1e-6)
    for split, content in tree.items():
        for video in dict.fromkeys(videos_of(content["id"], "tree", "tests")):
            rows, frames, lengths = own(content, "audio", video)
            spread = frames.std(0)
            expected = np.where(spread > 0, frames - frames.mean(0), 0) / np.where(spread > 0, spread, 1) / deviation
            parts = np.split(expected, np.cumsum(lengths)[:-1])
            for row, part in zip(rows, parts, strict=True):
                np.testing.assert_allclose(store.split(split).features["audio"][row], part, atol=1e-4)
    assert manifest.settings["standardised_by"] == "video"
    assert manifest.modalities["audio"]["features"] == {"kind": "precomputed", "standardised_by": "video"}
    assert ("  standardised", "within each video, then over the training split") in report_rows(manifest)


def test_by_default_and_by_corpus_nothing_is_new(write_pickle, tree, tmp_path):
    source = write_pickle(tree)
    plain = prepare(source, "mosi", tmp_path / "plain")
    assert plain.settings.keys() == {"case", "clip", "modalities", "frame_rates"}
    assert prepare(source, "mosi", tmp_path / "plain", standardised_by="corpus") == plain
    by = prepare(source, "mosi", tmp_path / "by", standardised_by="video")
    assert all(by.splits[split]["sha256"] != plain.splits[split]["sha256"] for split in tree)
    with pytest.raises(DataError, match="holds another data set already"):
        prepare(source, "mosi", tmp_path / "plain", standardised_by="video")


def test_no_split_sees_another(write_pickle, tree, tmp_path):
    """A video that is in two splits has two means, so that training reads nothing of a test."""
    tree["test"]["id"] = [f"train0$_${100 + row}" for row in range(len(tree["test"]["id"]))]
    prepare(write_pickle(tree), "mosi", tmp_path / "a", standardised_by="video")
    tree["test"]["audio"] *= 7
    prepare(write_pickle(tree), "mosi", tmp_path / "b", standardised_by="video")
    a, b = (open_store(tmp_path / name).manifest.splits for name in "ab")
    assert a["train"]["sha256"] == b["train"]["sha256"]


def test_evaluation_data_are_prepared_like_it(write_pickle, tree, tmp_path):
    prepare(write_pickle(tree), "mosi", tmp_path / "by", standardised_by="video")
    alone = write_pickle({"test": tree["test"]}, "alone.pkl")
    like = prepare(alone, "mosi", tmp_path / "like", like=tmp_path / "by")
    assert like.splits["test"]["sha256"] == open_store(tmp_path / "by").manifest.splits["test"]["sha256"]
    with pytest.raises(ConfigError, match="its features are standardised by video, not by corpus"):
        prepare(alone, "mosi", tmp_path / "other", like=tmp_path / "by", standardised_by="corpus")
    with pytest.raises(ConfigError, match="standardised_by='vidoe': expected one of corpus, video"):
        prepare(alone, "mosi", tmp_path / "other", standardised_by="vidoe")
    tree["valid"]["id"][1] = "plain"
    with pytest.raises(DataError, match=r"'plain' names no video; features standardised by video need ids such as"):
        prepare(write_pickle(tree), "mosi", tmp_path / "other", standardised_by="video")
    assert not (tmp_path / "other").exists()


def test_the_one_is_not_taken_for_the_other(write_pickle, tree, tmp_path):
    """Whatever form data come in, a model that learnt features of one kind does not read those of the other."""
    source = write_pickle(tree)
    stores = {}
    for by in ("corpus", "video"):
        prepare(source, "mosi", tmp_path / by, standardised_by=by)
        stores[by] = open_store(tmp_path / by)
    models = {by: DeepMLFConfig(modalities=store.modalities, dataset="mosi") for by, store in stores.items()}
    assert FeatureRecipe.of(models["video"].modalities["audio"]).describe() == "standardised within each video"
    told = "'audio' is standardised by {}, expected by {}"
    for mine, other in (("corpus", "video"), ("video", "corpus")):
        assert feature_problems(models[mine].modalities, stores[mine].modalities) == []
        assert open_labelled(tmp_path / mine, models[mine]).name == "test"
        assert fingerprint(models[mine].modalities) != fingerprint(models[other].modalities)
        with pytest.raises(DataError, match=told.format(other, mine)):
            open_labelled(tmp_path / other, models[mine])
    columns = Columns(modalities=("audio", "vision"))
    for read in (
        lambda model: open_labelled(source, model),
        lambda model: open_input(source, columns, model),
    ):
        read(models["corpus"])
        with pytest.raises(DataError, match=told.format("corpus", "video")):
            read(models["video"])
