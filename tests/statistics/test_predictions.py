"""Mirrors ``deepmlf_llm/statistics/predictions.py``."""

from __future__ import annotations

import sys

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from deepmlf_llm.errors import DataError, MissingPackageError
from deepmlf_llm.statistics.predictions import read_predictions, utterance_ids, write_predictions


def test_what_is_written_is_read(made, tmp_path):
    valid, test = made(1, split="valid", n=12), made(2)
    path = tmp_path / "predictions.parquet"
    assert write_predictions(path, [valid, test]) is None
    for split, expected in ((None, test), ("test", test), ("valid", valid)):
        found = read_predictions(path, split)
        assert (found.dataset, found.split, list(found.ids)) == ("mosi", expected.split, list(expected.ids))
        assert found.labels.dtype == found.head().dtype == np.float32
        assert (found.labels == expected.labels).all()
        assert found.heads.keys() == expected.heads.keys()
        assert all((found.heads[name] == values).all() for name, values in expected.heads.items())
    assert parquet.read_table(path).column_names == ["split", "id", "label", "polarity", "text_polarity"]
    with pytest.raises(DataError, match="no predictions of split 'train'; it has valid, test"):
        read_predictions(path, "train")
    with pytest.raises(DataError, match="no head 'av_polarity'; there are polarity, text_polarity"):
        found.head("av_polarity")


def test_a_single_split_is_the_default(made, tmp_path):
    write_predictions(tmp_path / "x.parquet", [made(1, split="valid")])
    assert read_predictions(tmp_path / "x.parquet").split == "valid"
    with pytest.raises(DataError, match="no predictions of split 'test'"):
        read_predictions(tmp_path / "x.parquet", "test")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text.parquet").write_text("no Parquet")
    parquet.write_table(pyarrow.table({"id": ["a"], "polarity": [1.0]}), tmp_path / "foreign.parquet")
    for name, words in (
        ("text", "not a file of predictions"),
        ("foreign", "not a file of predictions"),
        ("none", "no such"),
    ):
        with pytest.raises(DataError, match=words):
            read_predictions(tmp_path / f"{name}.parquet")


def test_without_pyarrow_there_is_a_sentence(made, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    said = write_predictions(tmp_path / "x.parquet", [made()])
    assert said is not None
    assert "pip install 'deepmlf_llm[study]'" in said
    assert not list(tmp_path.iterdir())
    with pytest.raises(MissingPackageError):
        read_predictions(tmp_path / "x.parquet")


def test_ids_or_rows():
    assert utterance_ids([{"id": "a"}, {}], 2) == ["a", "1"]
