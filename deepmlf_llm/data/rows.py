"""Utterances row by row out of JSON Lines or Parquet: a bad row is an error of its own, whatever it holds.

Nothing a row holds ends the reading or takes much memory: a row is bounded (:data:`MAX_LINE`, :data:`MAX_PARSED`)
before it is parsed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepmlf_llm.errors import DataError
from deepmlf_llm.extras import require
from deepmlf_llm.reading import parse_json

SUFFIXES = (".jsonl", ".ndjson", ".parquet")
MAX_LINE = 1 << 26
"""Characters of a line. One number of JSON takes some 20: three million numbers, a minute of 1024 features at 50 Hz."""

MAX_PARSED = 3 << 29
"""Bytes that the values of a line may take in memory, by an upper estimate."""

MAX_ROW_BYTES = 1 << 27
"""Bytes of one row of a Parquet file."""

MAX_GROUP_VALUES = 1 << 28
"""Numbers in one column of one row group of a Parquet file, which is as much as one page of it can unpack to."""

_BATCH_VALUES = 1 << 20
_BATCH_ROWS = 64
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of a byte that is not UTF-8
_LOOKED_AT = 16  # rows that say whether a file is JSON Lines at all


@dataclass(frozen=True)
class Row:
    """One row of a file: its values, or what is wrong with it.

    Attributes:
        number: of the row, from 1; blank lines are none.
        line: of the file, from 1; the number again where there are no lines.
        values: by key; empty where there is an error.
        error: what is wrong; None: nothing.
    """

    number: int
    line: int
    values: dict[str, Any]
    error: str | None = None

    @property
    def place(self) -> str:
        """Where it stands, for messages."""
        return f"row {self.number}" + (f" (line {self.line})" if self.line != self.number else "")


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of a ``.jsonl`` (``.ndjson``) or ``.parquet`` file, in order.

    JSON Lines: one object a line, in UTF-8, or in UTF-16 or UTF-32; byte order marks, blank lines and any line ending
    are read. ``NaN`` and ``Infinity`` among the numbers are read as such, though JSON has no such words.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    return _parquet_rows(path) if path.suffix == ".parquet" else json_rows(path)


def check_row_file(path: Path) -> list[Row]:
    """Looks at the first rows, before anything that takes long.

    Returns:
        The first rows, good or bad.

    Raises:
        DataError: nothing there, no row in it, or another kind of file; the message says what it looks like.
    """
    rows = read_rows(path)
    first = [row for row, _ in zip(rows, range(_LOOKED_AT), strict=False)]
    rows.close()  # type: ignore[attr-defined]
    if not first:
        raise DataError(f"{path}: holds no rows")
    if path.suffix != ".parquet" and not any(row.error is None for row in first):
        with path.open("rb") as file:
            start = file.read(512).lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n\0")
        if start.startswith(b"[") or start.split(b"\n", 1)[0].strip() == b"{":
            raise DataError(
                f"{path}: JSON over many lines, expected JSON Lines, one object a line: jq -c '.[]' FILE writes that "
                "from a list of objects, jq -c . FILE from one object after the other"
            )
    return first


def parse_object(line: str) -> dict[str, Any]:
    """The object that a line of JSON holds.

    Raises:
        DataError: no JSON, no object, a key that is there twice, nested too deeply, or too large.
    """
    if bad := _NOT_UTF8.search(line):
        raise DataError(
            f"not UTF-8 (byte 0x{ord(bad[0]) - 0xDC00:02x} at character {bad.start() + 1}); iconv converts a file"
        )
    if len(line) > 1 << 20 and (size := _parsed_bytes(line)) > MAX_PARSED:
        raise DataError(f"its values would take up to {size / 2**30:.1f} GB of memory; at most {MAX_PARSED / 2**30} GB")
    try:
        value = parse_json(line, nan=True)
    except ValueError as error:
        raise DataError(f"not JSON ({_short(error)})") from None
    if not isinstance(value, dict):
        raise DataError(f"expected an object, got {type(value).__name__}")
    return value


def _parsed_bytes(line: str) -> int:
    containers = line.count("[") + line.count("{")
    return len(line) + 88 * containers + 40 * line.count(",") + 30 * line.count('"')


def json_rows(path: Path) -> Iterator[Row]:
    """As :func:`read_rows`, of JSON Lines whatever the file is called."""
    number = 0
    for line, text in enumerate(_lines(path), start=1):
        if text is not None and not text.strip():
            continue
        number += 1
        try:
            if text is None:
                raise DataError(f"a line of more than {MAX_LINE:,} characters; a Parquet file holds longer sequences")
            yield Row(number, line, parse_object(text))
        except DataError as error:
            yield Row(number, line, {}, str(error))


def _lines(path: Path) -> Iterator[str | None]:
    """Lines as text, byte order marks taken away; None for one that is too long."""
    try:
        with path.open("rb") as file:
            encoding = json.detect_encoding(file.read(4))
        errors = "surrogateescape" if encoding.startswith("utf-8") else "replace"
        with path.open(encoding=encoding, errors=errors) as file:
            while text := file.readline(MAX_LINE):
                if len(text) < MAX_LINE or text.endswith("\n"):
                    yield text.lstrip("\ufeff")  # one is in the middle too where files were put together
                    continue
                while len(text) == MAX_LINE and not text.endswith("\n"):
                    text = file.readline(MAX_LINE)
                yield None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    parquet = require("pyarrow.parquet", f"reading {path.name}")
    import pyarrow

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names)
            for group in range(file.num_row_groups):
                size = _batch_size(path, group, file.metadata.row_group(group))
                for batch in file.iter_batches(batch_size=size, row_groups=[group]):
                    for index in range(len(batch)):
                        number += 1
                        yield _parquet_row(batch.slice(index, 1), number)
    except DataError:
        raise
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:  # 2nd: names that are not UTF-8
        where = f"after row {number}" if number else "no Parquet file"
        raise DataError(f"{path}: cannot be read, {where} ({_short(error)})") from error


def _check_columns(path: Path, names: list[str]) -> None:
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path}: column {repeated[0]!r} is there twice")


def _batch_size(path: Path, group: int, facts: Any) -> int:
    """Rows to read at once, so that a batch stays small."""
    values = max((facts.column(index).num_values for index in range(facts.num_columns)), default=0)
    if values > MAX_GROUP_VALUES:
        raise DataError(
            f"{path}: row group {group} holds {values:,} numbers in a column, at most {MAX_GROUP_VALUES:,} are read at "
            "once; write it with smaller row groups (row_group_size=1000)"
        )
    average = max(1, values // max(1, facts.num_rows))
    return max(1, min(_BATCH_ROWS, _BATCH_VALUES // average))


def _parquet_row(row: Any, number: int) -> Row:
    import pyarrow

    if row.nbytes > MAX_ROW_BYTES:
        return Row(number, number, {}, f"{row.nbytes:,} bytes in one row; at most {MAX_ROW_BYTES:,} are read")
    try:
        return Row(number, number, row.to_pylist()[0])
    except (ValueError, OverflowError, pyarrow.ArrowException) as error:  # text that is not UTF-8, times out of range
        return Row(number, number, {}, f"cannot be read ({_short(error)})")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
