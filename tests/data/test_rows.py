"""Rows of files: what a row holds never ends the reading, and never takes much memory."""

from __future__ import annotations

import codecs
import json

import pytest

from deepmlf_llm.data import rows as room
from deepmlf_llm.data.rows import check_row_file, parse_object, read_rows
from deepmlf_llm.errors import DataError

TEXTS = ["good", "naïve 音 🎬", "bad"]


def content(encoding: str, ending: str = "\n", mark: bytes = b"") -> bytes:
    return mark + "".join(json.dumps({"text": text}, ensure_ascii=False) + ending for text in TEXTS).encode(encoding)


@pytest.mark.parametrize(
    "raw",
    [
        content("utf-8"),
        content("utf-8", mark=codecs.BOM_UTF8),
        content("utf-8", "\r\n"),
        content("utf-8", "\r"),
        content("utf-8", "\n\n  \n", codecs.BOM_UTF8),
        content("utf-8").removesuffix(b"\n"),
        content("utf-8").replace(b"\n{", b"\n\xef\xbb\xbf{"),  # files with marks, put together
        content("utf-16"),
        content("utf-16-le"),
        content("utf-16-be", "\r\n", codecs.BOM_UTF16_BE),
        content("utf-32"),
    ],
)
def test_marks_blank_lines_and_line_endings_are_read(tmp_path, raw):
    (tmp_path / "in.jsonl").write_bytes(raw)
    rows = list(read_rows(tmp_path / "in.jsonl"))
    assert [row.values for row in rows] == [{"text": text} for text in TEXTS]
    assert [row.number for row in rows] == [1, 2, 3]


def test_rows_are_numbered_without_blank_lines_and_lines_with_them(tmp_path):
    (tmp_path / "in.jsonl").write_text('\n{"text": "x"}\n\n\nno json\n')
    first, second = read_rows(tmp_path / "in.jsonl")
    assert (first.place, second.place) == ("row 1 (line 2)", "row 2 (line 5)")
    assert second.error.startswith("not JSON")


BAD = {
    "nested lists": ('{"text": ' + "[" * 100_000, "nested too deep"),
    "nested and closed": ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deep"),
    "nested objects": ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deep"),
    "5000 digits": ('{"id": ' + "7" * 5000 + "}", "not JSON"),
    "repeated key": ('{"text": "a", "text": "b"}', "'text'"),
    "repeated inside": ('{"a": {"b": 1, "b": 1}}', "'b'"),
    "NUL": ('{"text": "a\0b"}', "not JSON"),
    "cut": ('{"text": "a', "not JSON"),
    "two objects": ('{"text": "a"} {"text": "b"}', "not JSON"),
    "a list": ("[1]", "expected an object, got list"),
    "a word": ('"x"', "expected an object, got str"),
    "nothing": ("null", "expected an object, got NoneType"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_an_error_of_its_row(tmp_path, name):
    line, message = BAD[name]
    (tmp_path / "in.jsonl").write_text(f'{{"text": "before"}}\n{line}\n{{"text": "after"}}\n')
    before, bad, after = read_rows(tmp_path / "in.jsonl")
    assert (before.values["text"], after.values["text"]) == ("before", "after")
    assert message in bad.error
    assert bad.values == {}


def test_bytes_that_are_no_utf_8_are_named_and_escapes_are_not_taken_for_them(tmp_path):
    raw = b'{"text": "caf\xe9"}\n{"text": "\\udc80"}\n{"text": "\xed\xa0\x80"}\n'
    (tmp_path / "in.jsonl").write_bytes(raw)
    latin, escaped, surrogate = read_rows(tmp_path / "in.jsonl")
    assert latin.error.startswith("not UTF-8 (byte 0xe9 at character 14); iconv")
    assert escaped.values == {"text": "\udc80"}
    assert "not UTF-8" in surrogate.error


def test_a_line_is_bounded_before_it_is_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "MAX_LINE", 64)
    exact = json.dumps({"text": "x" * 51})
    assert len(exact) == 63
    lines = [json.dumps({"text": "x" * 500}), exact, json.dumps({"text": "x" * 117}), '{"text": "z"}']
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    rows = list(read_rows(tmp_path / "in.jsonl"))
    assert ["more than 64 characters" in (row.error or "") for row in rows] == [True, False, True, False]
    assert [row.line for row in rows] == [1, 2, 3, 4]


def test_what_a_line_would_take_in_memory_is_bounded_too():
    with pytest.raises(DataError, match=r"would take up to 2\.\d GB"):
        parse_object('{"audio": [' + "[]," * (1 << 24) + "[]]}")
    assert len(parse_object('{"text": "' + "w " * (1 << 20) + '"}')["text"]) == 1 << 21


def test_parquet_rows_groups_and_bounds(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "in.parquet"
    given = [{"text": f"t{i}", "audio": [[float(i)] * 3] * (i + 1)} for i in range(7)]
    parquet.write_table(pyarrow.Table.from_pylist(given), path, row_group_size=3)
    assert [row.values for row in read_rows(path)] == given
    monkeypatch.setattr(room, "MAX_ROW_BYTES", 150)
    errors = [row.error for row in read_rows(path)]
    assert errors[0] is None
    assert "bytes in one row" in errors[-1]
    monkeypatch.setattr(room, "MAX_GROUP_VALUES", 40)
    with pytest.raises(DataError, match=r"row group 1 holds 45 numbers .*row_group_size=1000"):
        list(read_rows(path))


def test_parquet_that_is_damaged_or_odd(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "in.parquet"
    broken = pyarrow.StringArray.from_buffers(
        2, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"a\xff")
    )
    parquet.write_table(pyarrow.table({"text": broken}), path)
    good, bad = read_rows(path)
    assert good.values == {"text": "a"}
    assert "cannot be read" in bad.error
    parquet.write_table(pyarrow.table([[1], [2]], names=["text", "text"]), path)
    with pytest.raises(DataError, match="column 'text' is there twice"):
        check_row_file(path)
    parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), path)
    with pytest.raises(DataError, match="holds no rows"):
        check_row_file(path)
    parquet.write_table(pyarrow.table({"text": ["x" * 50] * 1000}), path, compression=None, use_dictionary=False)
    raw = bytearray(path.read_bytes())
    raw[4:200] = b"\xff" * 196
    path.write_bytes(raw)
    with pytest.raises(DataError, match="cannot be read"):
        list(read_rows(path))
    path.write_bytes(bytes(raw).replace(b"text", b"te\xff\xfe"))
    with pytest.raises(DataError, match="cannot be read"):
        list(read_rows(path))


def test_a_file_that_cannot_be_opened_is_one_error(tmp_path):
    (tmp_path / "folder.jsonl").mkdir()
    for name in ("missing.jsonl", "folder.jsonl", "missing.parquet"):
        with pytest.raises(DataError, match="cannot be read"):
            list(read_rows(tmp_path / name))
