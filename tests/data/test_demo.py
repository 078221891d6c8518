"""The embedded set: what it says of itself, the same by seed, and audio and vision that help where words mislead."""

from __future__ import annotations

import io
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import RidgeCV

from deepmlf_llm.data.demo import embedded_dataset
from deepmlf_llm.data.demo_texts import ARCHIVE, generated_texts, rated_texts
from deepmlf_llm.data.store import DataStore, open_store
from deepmlf_llm.errors import ConfigError, DataError
from deepmlf_llm.paths import CACHE_VARIABLE, downloads_dir

SMALL = (40, 10, 12)


@pytest.fixture
def no_downloads(tmp_path, monkeypatch) -> Path:
    """A cache without the rated sentences."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_archive(path: Path, lines: list[str]) -> Path:
    """A file of the layout of the real one."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        for name in ("movieReviewSnippets_GroundTruth.txt", "amazonReviewSnippets_GroundTruth.txt"):
            _add(tar, f"hutto_ICWSM_2014/{name}", "\r\n".join(lines if "movie" in name else []).encode())
    with tarfile.open(path, mode="w:gz") as tar:
        _add(tar, "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz", inner.getvalue())
    return path


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def pooled(store: DataStore, split: str, modalities=("audio", "vision")) -> np.ndarray:
    means = [
        np.concatenate(
            [item[name].mean(0) if len(item[name]) else np.zeros(item[name].shape[1]) for name in modalities]
        )
        for item in store.split(split)
    ]
    return np.array(means)


def ridge(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    return RidgeCV(np.logspace(-2, 3, 12)).fit(train, labels).predict(test)


@pytest.mark.parametrize("real", [True, False], ids=["rated", "generated"])
def test_sound_and_sight_help_much(tmp_path, no_downloads, real, isolated_cache):
    archive = isolated_cache / "downloads" / ARCHIVE
    if real and not archive.is_file():
        pytest.skip("the rated sentences were not downloaded")
    store = open_store(embedded_dataset(tmp_path, archive if real else None))
    train, test = store.split("train"), store.split("test")
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(train.texts)
    said, said_test = (3 * words.transform(split.texts).toarray() for split in (train, test))
    shown, shown_test = pooled(store, "train"), pooled(store, "test")

    def scores(prediction):
        return np.corrcoef(prediction, test.labels)[0, 1], np.abs(prediction - test.labels).mean()

    corr_text, mae_text = scores(ridge(said, train.labels, said_test))
    corr_all, mae_all = scores(ridge(np.hstack([said, shown]), train.labels, np.hstack([said_test, shown_test])))
    corr_shown, _ = scores(ridge(shown, train.labels, shown_test))
    assert corr_text > 0.1
    assert corr_all > corr_text + 0.3
    assert corr_all > corr_shown + 0.08
    assert mae_all < 0.75 * mae_text
    # What the words say, known exactly, is not enough either; with what is shown it is.
    exact, exact_test = train.unimodal["T"][:, None], test.unimodal["T"][:, None]
    assert scores(ridge(exact, train.labels, exact_test))[0] < 0.55
    assert scores(ridge(np.hstack([exact, shown]), train.labels, np.hstack([exact_test, shown_test])))[0] > 0.9
    # Half of the turns are heard, half are seen: neither modality replaces the other.
    for one in ("audio", "vision"):
        alone, alone_test = (
            np.hstack([e, pooled(store, s, (one,))]) for e, s in ((exact, "train"), (exact_test, "test"))
        )
        assert scores(ridge(alone, train.labels, alone_test))[0] < 0.85


def test_shapes_and_facts(tmp_path, no_downloads):
    store = open_store(embedded_dataset(tmp_path, sizes=(300, 50, 60)))
    store.verify()
    manifest = store.manifest
    assert manifest.dataset == "mosi"
    assert manifest.source["kind"] == "embedded"
    assert manifest.source["texts"].startswith("generated sentences")
    assert manifest.source["features"].startswith("SYNTHETIC")
    assert any("SYNTHETIC" in note for note in manifest.notes)
    assert [facts["rows"] for facts in manifest.splits.values()] == [300, 50, 60]
    assert store.modalities["audio"]["dim"] == 16
    assert store.modalities["vision"]["dim"] == 20
    for name, (shortest, longest) in {"audio": (12, 40), "vision": (8, 30)}.items():
        lengths = np.concatenate([store.split(split).features[name].lengths for split in manifest.splits])
        present = lengths[lengths > 0]
        assert (present.min(), present.max()) == (shortest, longest)
        assert 0 < (lengths == 0).mean() < 0.06
        assert sum(sum(counts.values()) for counts in manifest.modalities[name]["cleaned"].values()) > 0
    misleading = np.abs(store.split("train").labels - store.split("train").unimodal["T"]) > 0.01
    assert 0.25 < misleading.mean() < 0.45
    assert -3 <= manifest.labels["min"] < -2
    assert 2 < manifest.labels["max"] <= 3
    assert manifest.text["words"]["max"] <= 25


def test_the_same_by_seed_and_another_by_another(tmp_path, no_downloads):
    def content(cache, seed):
        directory = embedded_dataset(tmp_path / cache, sizes=SMALL, seed=seed)
        return {path.name: path.read_bytes() for path in directory.rglob("*.arrow")}, directory.name

    first, name = content("a", 0)
    again, same_name = content("b", 0)
    assert (first, name) == (again, same_name)
    other, other_name = content("a", 1)
    assert other_name != name
    assert other != first


def test_made_once_by_many_at_once(tmp_path, no_downloads):
    with ThreadPoolExecutor(4) as pool:
        directories = set(pool.map(lambda _: embedded_dataset(tmp_path, sizes=SMALL), range(4)))
    assert len(directories) == 1
    stamp = (directories.pop() / "manifest.json").stat().st_mtime_ns
    assert (embedded_dataset(tmp_path, sizes=SMALL) / "manifest.json").stat().st_mtime_ns == stamp
    assert not [path for path in (tmp_path / "data").iterdir() if ".partial-" in path.name]


def test_default_place_is_the_users_cache(no_downloads):
    assert embedded_dataset(sizes=SMALL).parent == no_downloads / "data"


def test_numpy_storage_holds_the_same(tmp_path, no_downloads):
    arrow, numpy = (open_store(embedded_dataset(tmp_path, sizes=SMALL, storage=s)) for s in ("arrow", "numpy"))
    assert arrow.manifest.splits == numpy.manifest.splits


def test_rated_sentences_are_read_filtered_and_rescaled(tmp_path):
    lines = [
        "1\t4.0\tAn  utterly wonderful film .",
        "2\t-2.0\tA dull and slow one.",
        "3\t1.0\ttoo short",
        "4\t1.0\t" + "far too long " * 10,
        "5\t1.0\tNot in \u00e4scii, this one.",
        "6\t1.0\tA dull and slow one.",
        "a line of another kind",
    ]
    rated = rated_texts(make_archive(tmp_path / "some.tar.gz", lines))
    assert rated.texts == ["An utterly wonderful film .", "A dull and slow one."]
    assert rated.polarity.tolist() == [3.0, -1.5]
    assert rated.description.startswith("real English")


def test_bad_archives(tmp_path, no_downloads):
    with pytest.raises(DataError, match="no such file"):
        rated_texts(tmp_path / "absent.tar.gz")
    for content in (b"", b"no archive", make_archive(tmp_path / "ok.tar.gz", ["1\t1\ta b c d"]).read_bytes()[:200]):
        (tmp_path / "bad.tar.gz").write_bytes(content)
        with pytest.raises(DataError, match="not the source distribution of vaderSentiment"):
            rated_texts(tmp_path / "bad.tar.gz")
    with pytest.raises(DataError, match="holds no rated sentences"):
        rated_texts(make_archive(tmp_path / "none.tar.gz", []))


def test_bad_sizes(tmp_path, no_downloads):
    with pytest.raises(ConfigError, match="three positive sizes"):
        embedded_dataset(tmp_path, sizes=(1, 0, 1))
    with pytest.raises(ConfigError, match=r"together at most \d+, the number of sentences"):
        embedded_dataset(tmp_path, sizes=(10**6, 1, 1))


def test_generated_sentences_are_distinct_and_cover_the_scale():
    generated = generated_texts()
    assert len(set(generated.texts)) == len(generated.texts)
    assert generated.polarity.min() < -2.5
    assert generated.polarity.max() > 2.5
    assert max(len(text.split()) for text in generated.texts) <= 25


def test_the_download_of_the_setup_is_found(tmp_path, no_downloads):
    downloads_dir().mkdir(parents=True)
    make_archive(downloads_dir() / ARCHIVE, ["1\t4\tA really good film.", "2\t-4\tA really bad film."])
    assert rated_texts().texts == ["A really good film.", "A really bad film."]


def test_a_cache_that_cannot_be_written_is_a_warning_and_the_work_goes_on(tmp_path):
    (tmp_path / "cache").write_text("a file where the cache should be")
    with pytest.warns(UserWarning, match=r"cannot be written: .*; going on without the cache"):
        directory = embedded_dataset(tmp_path / "cache", sizes=SMALL)
    assert open_store(directory).split("train").fingerprint() == (
        open_store(embedded_dataset(tmp_path / "other", sizes=SMALL)).split("train").fingerprint()
    )
    assert tmp_path not in directory.parents
