"""A file of utterances: order, bad rows, going on after a cut."""

from __future__ import annotations

import json
import multiprocessing
import time
from typing import ClassVar

import pytest

from deepmlf_llm.errors import DataError, FileError
from deepmlf_llm.inference import prediction_file
from deepmlf_llm.inference.output_file import partial_output
from deepmlf_llm.inference.prediction_file import OUTSIZED_BYTES, check_files, predict_file
from deepmlf_llm.inference.predictor import Prediction


class Echo:
    """A predictor whose polarity is the length of the text: files are under test here, not models."""

    batch_size = 1

    class config:  # stands for DeepMLFConfig
        modalities: ClassVar = {"audio": None}
        dataset = "mosi"
        task = None

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


@pytest.mark.parametrize("content", ['{"id": 1}\n{"id": 2}', "half a line"])
def test_a_file_of_somebody_else_is_left_as_it_is(source, tmp_path, content):
    (tmp_path / "out.jsonl.partial").write_text(content)
    with pytest.raises(DataError, match="nobody knows what"):
        predict_file(Echo(), source, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl.partial").read_text() == content


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


def test_strict_keeps_the_lines_before_the_bad_row(tmp_path):
    rows = [{"id": i, "text": "x"} for i in range(70)]
    rows[45] = {"id": 45}
    source = write(tmp_path / "in.jsonl", rows)
    with pytest.raises(DataError, match=r"row 46: .*; the 45 lines before it are in .*out.jsonl.partial"):
        predict_file(Echo(), source, tmp_path / "out.jsonl", strict=True)
    assert [line["id"] for line in lines(tmp_path / "out.jsonl.partial")] == list(range(45))


def test_a_damaged_line_of_an_earlier_run_is_named(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"id": 1, "text": "x"}])
    (tmp_path / "out.jsonl.partial").write_text('{"id": 1, "error": "x}\n')
    with pytest.raises(DataError, match=r"out.jsonl.partial: line 1 is damaged; delete the file to start again"):
        predict_file(Echo(), source, tmp_path / "out.jsonl")


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
        ("in.jsonl", "nowhere/out.jsonl", "its directory is not there"),
        ("in.jsonl", "in.jsonl", "exists"),
    ],
)
def test_files_are_checked_before_a_model_is_loaded(source, tmp_path, input_name, output_name, message):
    with pytest.raises(DataError, match=message):
        check_files(tmp_path / input_name, tmp_path / output_name, 8)


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("rows", "code", "bad"),
    [
        ([{"id": 1, "text": "x"}, {"id": 2, "text": "y"}], 0, 0),
        ([{"id": 1, "text": "x"}, {"id": 2}], 3, 1),
        ([{"id": 1}, {"id": 2}, "no json"], 2, 3),
    ],
)
def test_the_exit_code_says_how_many_rows_are_good(tmp_path, rows, code, bad):
    report = predict_file(Echo(), write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl")
    assert (report.exit_code, report.bad, report.rows) == (code, bad, len(rows))
    assert len(lines(tmp_path / "out.jsonl")) == len(rows)


def test_bad_rows_of_an_earlier_run_count_too(source, tmp_path):
    source.write_text('{"id": "bad"}\n' + source.read_text())
    kept = cut(source, tmp_path / "out.jsonl", 10_000).read_text().count("\n")
    report = predict_file(Echo(), source, tmp_path / "out.jsonl")
    assert kept > 20
    assert (report.found, report.bad, report.rows, report.exit_code) == (kept, 1, 41, 3)


def hold(output):
    """Another process that writes ``output``, until a file ``go`` is there."""
    with partial_output(output, {}) as partial:
        partial.write([{"id": 0}])
        output.with_name("ready").touch()
        while not output.with_name("go").exists():
            time.sleep(0.01)


@pytest.fixture
def another_process(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path / "out.jsonl",))
    process.start()
    while not (tmp_path / "ready").exists():
        assert process.is_alive()
        time.sleep(0.01)
    yield process
    process.kill()
    process.join()


def test_one_process_writes_an_output_and_a_second_says_so(source, tmp_path, another_process):
    with pytest.raises(FileError, match=r"out.jsonl: another process writes it"):
        predict_file(Echo(), source, tmp_path / "out.jsonl")
    (tmp_path / "go").touch()
    another_process.join()
    assert another_process.exitcode == 0
    assert lines(tmp_path / "out.jsonl") == [{"id": 0}]
    with pytest.raises(DataError, match="exists"):
        check_files(source, tmp_path / "out.jsonl", 8)


def test_the_lock_of_a_killed_process_is_gone_with_it(source, tmp_path, another_process):
    another_process.kill()
    another_process.join()
    partial = tmp_path / "out.jsonl.partial"
    assert partial.read_text() == '{"id": 0}\n'
    partial.unlink()
    assert predict_file(Echo(), source, tmp_path / "out.jsonl").rows == 40


def test_an_output_that_appears_meanwhile_is_not_overwritten(source, tmp_path):
    class Slow(Echo):
        def predict_prepared(self, items):
            (tmp_path / "out.jsonl").write_text("somebody's")
            return super().predict_prepared(items)

    with pytest.raises(DataError, match=r"appeared meanwhile; the predictions are in .*out.jsonl.partial"):
        predict_file(Slow(), source, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "somebody's"
    assert len(lines(tmp_path / "out.jsonl.partial")) == 40


def test_a_refusal_before_the_first_line_leaves_nothing_behind(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"id": 1}])
    with pytest.raises(DataError, match="row 1"):
        predict_file(Echo(), source, tmp_path / "out.jsonl", strict=True)
    assert list(tmp_path.iterdir()) == [source]
    with pytest.raises(FileError):
        predict_file(Echo(), source, source / "out.jsonl")


class Fragile(Echo):
    """Fails on batches that hold a text of two letters, in ways a model does."""

    batch_size = 8

    def __init__(self, failure):
        super().__init__()
        self.failure, self.sizes = failure, []

    def predict_prepared(self, items):
        self.sizes.append(len(items))
        found = super().predict_prepared(items)
        for i, item in enumerate(items):
            if len(item["text"]) == 2:
                if isinstance(self.failure, Exception):
                    raise self.failure
                found[i] = Prediction(self.failure, "positive", 0.0, None, 0.0)
        return found


@pytest.mark.parametrize(
    "failure",
    [
        DataError("polarity: 1 of 1 values are not finite"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        float("nan"),
        float("inf"),
    ],
)
def test_a_row_that_the_model_fails_on_is_bad_and_its_batch_is_not(source, tmp_path, failure):
    report = predict_file(Fragile(failure), source, tmp_path / "out.jsonl")
    written = lines(tmp_path / "out.jsonl")
    assert (report.bad, report.rows) == (1, 40)
    assert written[2]["error"].startswith("cannot be predicted")
    assert [line["polarity"] for line in written if "error" not in line] == [i for i in range(40) if i != 2]


def test_a_defect_is_no_bad_row(source, tmp_path):
    with pytest.raises(RuntimeError, match="shapes"):
        predict_file(Fragile(RuntimeError("shapes differ")), source, tmp_path / "out.jsonl")


def test_a_row_of_many_features_is_predicted_alone_and_chunks_stay_small(tmp_path, monkeypatch):
    import numpy as np

    class Sized(Fragile):
        def prepare(self, text, features):
            return {"text": text, "audio": np.empty(int(features["audio"][0][0]), dtype=np.float32)}

    sizes = [1, 1, OUTSIZED_BYTES // 4 + 1, 1, 1]
    source = write(tmp_path / "in.jsonl", [{"id": i, "text": "x", "audio": [[n]]} for i, n in enumerate(sizes)])
    echo = Sized(None)
    predict_file(echo, source, tmp_path / "out.jsonl")
    assert echo.sizes == [4, 1]
    monkeypatch.setattr(prediction_file, "CHUNK_BYTES", 4)
    echo = Sized(None)
    predict_file(echo, source, tmp_path / "again.jsonl")
    assert echo.sizes == [2, 1, 2]
    assert [line["id"] for line in lines(tmp_path / "again.jsonl")] == list(range(5))


def test_what_is_not_read_is_told_once(tmp_path, capsys):
    rows = [{"id": i // 2, "text": "x", "speaker": "a", "take": i, "Audio": "clip.wav"} for i in range(70)]
    report = predict_file(Echo(), write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl")
    assert report.notes == [
        "not read, because they are no id, text, label, audio: 'speaker', 'take', 'Audio' (did you mean 'audio'?)",
        "35 rows repeat the id of another row",
    ]
    report = predict_file(Echo(), write(tmp_path / "in.jsonl", [rows[0], *["x"] * 70]), tmp_path / "bad.jsonl")
    assert report.notes[0] == "20 more bad rows, each with its error in the output"
    assert capsys.readouterr().err.count("\n") == 50


def test_an_id_that_is_none_makes_a_bad_row_and_every_line_is_json(tmp_path):
    ids = [[1], {"a": 1}, float("nan"), float("-inf"), 10**400, "\ud800", "\x00", None, 1.5]
    predict_file(Echo(), write(tmp_path / "in.jsonl", [{"id": i, "text": "x"} for i in ids]), tmp_path / "out.jsonl")
    written = [
        json.loads(line, parse_constant=pytest.fail)
        for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [line["id"] for line in written] == [None, None, None, None, 10**400, "\ud800", "\x00", None, 1.5]
    assert ["error" in line for line in written] == [True] * 4 + [False] * 5


def test_files_that_are_no_rows_are_refused_whole(tmp_path):
    cases = {
        "empty.jsonl": (b"", "holds no rows"),
        "blank.jsonl": (b"\n\n  \n", "holds no rows"),
        "bom.jsonl": (b"\xef\xbb\xbf", "holds no rows"),
        "list.jsonl": (json.dumps([{"text": "x"}] * 2, indent=1).encode(), "JSON over many lines, .* jq"),
        "pretty.jsonl": (json.dumps({"text": "x"}, indent=1).encode(), "JSON over many lines, .* jq"),
        "list on a line.jsonl": (b'[{"text": "x"}]', "JSON over many lines, .* jq"),
        "junk.parquet": (b"PAR1 and no more", "no Parquet file"),
        "empty.parquet": (b"", "no Parquet file"),
        "in.csv": (b"id,text", "in.csv: is text"),
        "page.jsonl": (b"<html>404</html>", "web page"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            predict_file(Echo(), path, tmp_path / "out.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match=r"no label.csv in this folder"):
        predict_file(Echo(), tmp_path / "folder.jsonl", tmp_path / "out.jsonl")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("acoustic", [[1.0]], r"'acoustic' \(did you mean 'audio'\?\) .*--rename acoustic=audio"),
        ("audio_features", [1.0], "--rename audio_features=audio"),
        ("AUDIO", [[1.0]], "--rename AUDIO=audio"),
        ("text_bert", [[1]], "'text_bert' holds a sequence; the modalities are audio; --ignore text_bert"),
        ("features", {"audio": [[1.0]]}, "'features' holds a sequence"),
        ("raw_text", "x", "no 'text', but 'raw_text': --rename raw_text=text"),
    ],
)
def test_a_key_that_all_rows_name_otherwise_is_refused_at_once(tmp_path, key, value, message):
    text = {} if key == "raw_text" else {"text": "x"}
    source = write(tmp_path / "in.jsonl", [{"id": i, **text, key: value} for i in range(3)])
    with pytest.raises(DataError, match=message):
        predict_file(Echo(), source, tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == [source]


def test_one_row_with_a_strange_key_is_a_bad_row(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"id": 1, "text": "x"}, {"id": 2, "text": "x", "acoustic": [1]}])
    assert predict_file(Echo(), source, tmp_path / "out.jsonl").exit_code == 3
    assert "--rename acoustic=audio" in lines(tmp_path / "out.jsonl")[1]["error"]
