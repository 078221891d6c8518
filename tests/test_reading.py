"""JSON and YAML are read strictly, and a small file costs little."""

from __future__ import annotations

import time

import pytest

from deepmlf_llm import reading
from deepmlf_llm.reading import parse_json, parse_yaml, read_json, read_yaml

DEEP = 200_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' stands there twice"),
        ('{"a": 1, "\\u0061": 1}', "the key 'a' stands there twice"),
        ("[NaN]", "NaN is not JSON"),
        ("[-Infinity]", "-Infinity is not JSON"),
        ("[" * DEEP, "nested too deep"),
        ('{"a":' * DEEP, "nested too deep"),
        ("1" * 5000, "4300 digits"),
        ("{", "Expecting"),
        ("", "Expecting"),
        (b"\xff\xfe\xfd", "decode"),
    ],
)
def test_json_that_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_settings_of_too_many_keys_are_not_looked_at_one_by_one():
    many = "{" + ", ".join(f'"k{i}": 1' for i in range(reading.KEYS_LIMIT + 1)) + "}"
    assert len(parse_json(many)) == reading.KEYS_LIMIT + 1
    for parse in (parse_yaml, lambda text: parse_json(text, settings=True)):
        with pytest.raises(ValueError, match="5001 keys"):
            parse(many)


def test_json_as_python_writes_it_is_read_on_request():
    assert parse_json("[1, null, -Infinity]", nan=True) == [1, None, float("-inf")]


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i}\n  <<: [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
KEYS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} {{? [*a{i - 1}, *a{i - 1}] : 1}}\n" for i in range(1, 60))


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: {c: 1, c: 2}", "line 2: the key 'c' stands there twice"),
        ("1: x\n0x1: y", "line 2: the key 1 stands there twice"),
        ("? [a]\n: 1", "a key that is not a word"),
        (BOMB, "aliases unfold into more than"),
        (MERGED, "aliases unfold into more than"),
        (KEYS, "aliases unfold into more than"),
        ("a: &a [*a]", "a value that holds itself"),
        ("a: &a {b: *a}", "a value that holds itself"),
        ("[" * DEEP, "nested too deep"),
        ("- " * DEEP, "nested too deep"),
        ("{a: " * DEEP, "bytes; settings have at most|nested too deep"),
        ("a: " + ":".join("1" * DEEP), "a number of"),
        ("a: " + "1" * 5000, "a number of 5000 characters"),
        ("a: 0x" + "f" * 5000, "a number of"),
        ("a: !!int x", "invalid literal"),
        ("a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
        ("a: 2020-99-99", "month must be in 1..12"),
        ("a: !!timestamp x", "a !!timestamp that is none"),
        ("a: 1\n---\nb: 1", "a single document"),
        ("a: b: c", "mapping values are not allowed"),
        ("a: \x00", "unacceptable character"),
        ("x" * (reading.YAML_LIMIT + 1), "settings have at most"),
    ],
)
def test_yaml_that_is_refused(text, message):
    began = time.monotonic()
    with pytest.raises(ValueError, match=message):
        parse_yaml(text)
    assert time.monotonic() - began < 10


def test_yaml_that_people_write():
    text = (
        "base: &b {lr: 1e-3, r: 0x10}\nrun:\n  <<: *b\n  r: 8\nlist: [1, 2.5, yes, null, 2024-01-02]\nagain: [*b, *b]\n"
    )
    values = parse_yaml(text)
    assert values["run"] == {"lr": "1e-3", "r": 8}
    assert values["again"] == [{"lr": "1e-3", "r": 16}] * 2
    assert parse_yaml("") is None


def test_files_past_a_size_are_not_read(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_text("a" * 100)
    with pytest.raises(ValueError, match="larger than the 10 bytes"):
        read_json(path, limit=10)
    monkeypatch.setattr(reading, "YAML_LIMIT", 10)
    with pytest.raises(ValueError, match="larger than the 10 bytes"):
        read_yaml(path)
    with pytest.raises(OSError):
        read_json(tmp_path / "absent")
    path.write_text('{"a": 1}')
    assert read_json(path) == read_yaml(path) == {"a": 1}
