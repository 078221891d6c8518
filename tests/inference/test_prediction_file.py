"""A file of utterances: order, bad rows, going on after a cut."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest

from deepmlf_llm.errors import DataError
from deepmlf_llm.inference.prediction_file import check_files, predict_file
from deepmlf_llm.inference.predictor import Prediction


class Echo:
    """A predictor whose polarity is the length of the text: files are under test here, not models."""

    batch_size = 1

    class config:  # stands for DeepMLFConfig
        modalities: ClassVar = {"audio": None}

    def __init__(self):
        self.seen = []

    def prepare(self, text, features):
        if not isinstance(text, str):
            raise DataError(f"text is {type(text).__name__}, expected a string")
        return {"text": text, **features}

    def predict_prepared(self, items):
        self.seen += [item["text"] for item in items]
        return [Prediction(len(item["text"]), "positive", 0.0, None, 0.0) for item in items]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"id": i, "text": "x" * i}) + "\n" for i in range(40)))
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_order_is_kept_and_every_row_has_a_line(source, tmp_path):
    report = predict_file(Echo(), source, tmp_path / "out.jsonl")
    written = lines(tmp_path / "out.jsonl")
    assert [(line["id"], line["polarity"]) for line in written] == [(i, i) for i in range(40)]
    assert written[0].keys() == {
        "id", "polarity", "label", "text_polarity", "av_polarity", "fusion_polarity"
    }  # fmt: skip
    assert (report.rows, report.bad, report.found) == (40, 0, 0)
    assert not (tmp_path / "out.jsonl.partial").exists()


def cut(source, output, cut_at, made_by=None):
    """What a kill leaves: the first ``cut_at`` bytes of the lines, and the note."""

    class Killed(Echo):
        def predict_prepared(self, items):
            if len(self.seen) >= 32:
                raise KeyboardInterrupt
            return super().predict_prepared(items)

    with pytest.raises(KeyboardInterrupt):
        predict_file(Killed(), source, output, made_by=made_by)
    partial = output.with_name(output.name + ".partial")
    partial.write_bytes(partial.read_bytes()[:cut_at])
    return partial


def test_a_cut_run_goes_on_after_its_last_whole_line(source, tmp_path):
    whole = tmp_path / "whole.jsonl"
    predict_file(Echo(), source, whole)
    content = whole.read_bytes()
    for at in (0, 1, len(content) // 2, len(content)):
        output = tmp_path / f"cut{at}.jsonl"
        kept = cut(source, output, at, {"adapter": "a"}).read_bytes()
        echo = Echo()
        report = predict_file(echo, source, output, made_by={"adapter": "a"})
        assert output.read_bytes() == content
        assert report.found == kept.count(b"\n") == 40 - len(echo.seen)
        assert not list(tmp_path.glob("*.partial*"))


def test_lines_of_another_run_are_refused_and_kept(source, tmp_path):
    output = tmp_path / "out.jsonl"
    partial = cut(source, output, 10_000, {"adapter": "a", "dtype": "auto"})
    before = partial.read_bytes()
    with pytest.raises(DataError, match=r"out.jsonl.partial holds 32 lines of another run: other adapter; delete it"):
        predict_file(Echo(), source, output, made_by={"adapter": "b", "dtype": "auto"})
    with pytest.raises(DataError, match="other adapter, dtype"):
        predict_file(Echo(), source, output)
    note = partial.with_name(partial.name + ".json")
    kept = note.read_text()
    for damage in ("", "[]", None):
        note.unlink() if damage is None else note.write_text(damage)
        with pytest.raises(DataError, match=r"nobody knows what \(out.jsonl.partial.json is missing or damaged\)"):
            predict_file(Echo(), source, output, made_by={"adapter": "a", "dtype": "auto"})
    note.write_text(kept)
    source.write_text(source.read_text().replace("xx", "xy"))
    with pytest.raises(DataError, match="other input;"):
        predict_file(Echo(), source, output, made_by={"adapter": "a", "dtype": "auto"})
    assert partial.read_bytes() == before
    partial.unlink()
    assert predict_file(Echo(), source, output).found == 0


def test_bad_rows_are_reported_by_number_and_keep_their_place(tmp_path, capsys):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"id": "a", "text": "xx"}\nnot json\n[1]\n{"id": "d"}\n{"id": "e", "text": "x"}\n')
    report = predict_file(Echo(), source, output)
    first, second, third, fourth, fifth = lines(output)
    assert (first["polarity"], fifth["polarity"]) == (2, 1)
    assert second["error"].startswith("not JSON")
    assert "expected an object" in third["error"]
    assert (fourth["id"], fourth["error"]) == ("d", "text is NoneType, expected a string")
    assert (report.rows, report.bad) == (5, 3)
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["row 2", "row 3", "row 4"]


def test_strict_stops_at_the_first_bad_row(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"id": 1, "text": "x"}\n{"id": 2}\n')
    with pytest.raises(DataError, match="row 2: text is NoneType"):
        predict_file(Echo(), source, tmp_path / "out.jsonl", strict=True)
    assert not (tmp_path / "out.jsonl").exists()


def test_parquet_rows_are_read_as_they_are(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"id": ["a", "b"], "text": ["x", "yy"], "audio": [[[1.0]], None]})
    parquet.write_table(table, tmp_path / "in.parquet")
    predict_file(Echo(), tmp_path / "in.parquet", tmp_path / "out.jsonl")
    assert [line["polarity"] for line in lines(tmp_path / "out.jsonl")] == [1, 2]


@pytest.mark.parametrize(
    ("input_name", "output_name", "message"),
    [
        ("missing.jsonl", "out.jsonl", "no such file"),
        ("in.csv", "out.jsonl", "expected a .jsonl or .parquet"),
        ("in.jsonl", "nowhere/out.jsonl", "its directory is not there"),
        ("in.jsonl", "in.jsonl", "exists"),
    ],
)
def test_files_are_checked_before_a_model_is_loaded(source, tmp_path, input_name, output_name, message):
    (tmp_path / "in.csv").touch()
    with pytest.raises(DataError, match=message):
        check_files(tmp_path / input_name, tmp_path / output_name, 8)
