"""``label.csv``, read so that no row can be lost or changed in silence.

A quote that is not closed swallows the rows behind it, and most readers give back what is left without a word. Here
every line is accounted for: quotes, the number of fields, labels and splits are checked, and named by their line.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deepmlf_llm.data.corpus import UNIMODAL_LABELS
from deepmlf_llm.data.source_names import SPLIT_NAMES, split_name
from deepmlf_llm.data.values import listed, parse_number
from deepmlf_llm.errors import DataError, suggest

COLUMNS = ("video_id", "clip_id", "text", "label", "mode")
NUMBERS = ("label", *(f"label_{suffix}" for suffix in UNIMODAL_LABELS))
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_OTHER_NAMES = {
    "text": ("transcript", "transcription", "raw_text", "sentence", "utterance", "transcripts"),
    "label": ("sentiment", "score", "polarity", "regression_labels", "labels", "y"),
    "mode": ("split", "fold", "set", "partition", "subset"),
    "video_id": ("video", "id", "file", "name"),
    "clip_id": ("clip", "segment", "segment_id", "utterance_id"),
}
"""What other tables call these columns: for messages only."""


@dataclass
class LabelTable:
    """The rows of a label.csv.

    Attributes:
        rows: column -> cell, as strings: an id like 0001 stays what it is.
        lines: where each row begins in the file.
        splits: of each row.
        numbers: column of labels -> numbers, NaN where a cell is empty.
        notes: what the user should know.
    """

    rows: list[dict[str, str]]
    lines: list[int] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    numbers: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_label_table(content: bytes, path: Path, labelled: bool = True, numeric: bool = True) -> LabelTable:
    """Reads a table with the columns video_id, clip_id, text, label, mode [, label_T, label_A, label_V].

    UTF-8 with or without a BOM; any line ends; commas, semicolons, tabs or bars between the fields.

    Args:
        content: of the file.
        path: for messages.
        labelled: an empty label is an error; False: there need be no labels and no splits, it is then all "test".
        numeric: labels are numbers; False: they stay as the cells have them.

    Raises:
        DataError: no such table; every wrong row is named by its line, the first few of many.
    """
    # Files that were put together have a byte order mark where each began: left there, it would be part of an id.
    lines = [line.lstrip("\ufeff") for line in io.StringIO(_decode(content, path), newline="")]
    if lines and lines[0].startswith("sep="):  # Excel's own line
        lines[0] = "\n"
    if not any(line.strip() for line in lines):
        raise DataError(f"{path}: is empty, expected a header with {', '.join(COLUMNS)}")
    delimiter = _delimiter(lines, path)
    records = list(_records(lines, delimiter, path))
    columns = [_column(name) for name in records[0][1]]
    _check_columns(columns, path, COLUMNS if labelled else COLUMNS[:3])
    _check_swallowed(records, lines, columns, delimiter, path)
    table = LabelTable([])
    if delimiter != ",":
        table.notes.append(f"{path.name} has {_DELIMITERS[delimiter]} between its fields")
    _check_widths(records, columns, path)
    for line, cells in records[1:]:
        row = dict(zip(columns, cells, strict=False))
        table.rows.append({name: cell if name == "text" else cell.strip() for name, cell in row.items()})
        table.lines.append(line)
    if not table.rows:
        raise DataError(f"{path}: has a header and no rows")
    _note_texts(table)
    _check_splits(table, path)
    _check_ids(table, path)
    for column in NUMBERS if numeric else ():
        table.numbers[column] = _numbers(table, column, path, required=labelled and column == "label")
    return table


def _decode(content: bytes, path: Path) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path}: no CSV table in UTF-8 (it is UTF-16); save it as UTF-8")
    if b"\0" in content:
        line = content[: content.index(b"\0")].count(b"\n") + 1
        raise DataError(f"{path}: no CSV table in UTF-8: line {line} has a NUL byte (UTF-16?); save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8", "replace")
        line = len(list(io.StringIO(before + "x", newline="")))
        raise DataError(
            f"{path}: no CSV table in UTF-8: line {line} holds the byte {content[error.start]:#04x} (Latin-1 or "
            "Windows-1252 perhaps); save it as UTF-8"
        ) from None


def _delimiter(lines: Sequence[str], path: Path) -> str:
    """What stands between the names of the columns."""
    header = next(line for line in lines if line.strip())
    found = {mark: sum(name.strip(' "\r\n') in COLUMNS for name in header.split(mark)) for mark in _DELIMITERS}
    return max(found, key=lambda mark: (found[mark], header.count(mark)))


def _records(lines: Sequence[str], delimiter: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line and cells of each record; blank lines are left out."""
    header = next(line for line in lines if line.strip()).split(delimiter)
    spaced = len(header) > 1 and all(name.startswith(" ") for name in header[1:])
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=spaced)
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            end = min(reader.line_num, len(lines))
            opened = _opened(lines, start, end)
            if "limit" in str(error) and opened == end:
                raise DataError(
                    f"{path}: line {end} has a field of more than {csv.field_size_limit()} letters"
                ) from None
            if opened < end or "end of data" in str(error):
                raise DataError(_unclosed(path, opened, end)) from None
            raise DataError(
                f"{path}: line {end}: wrong quotes ({error}): a field that begins with a quote ends with one, and "
                'those inside it are doubled ("")'
            ) from None
        if any(cell.strip() for cell in cells):
            yield start, cells


def _opened(lines: Sequence[str], start: int, end: int) -> int:
    """The line, from ``start`` to ``end``, where the quote opens that is open at the end of the line before ``end``."""
    opened, inside = end, False
    for number in range(start, end):
        if lines[number - 1].count('"') % 2:
            inside = not inside
            opened = number
    return opened if inside else end


def _unclosed(path: Path, opened: int, end: int) -> str:
    swallowed = f", and would swallow the rows down to line {end}" if end > opened else ""
    return (
        f"{path}: line {opened} opens a quote that is not closed there{swallowed}; close it, or double the quotes "
        'inside the transcript ("")'
    )


def _column(name: str) -> str:
    """A column's name, in the spelling of this module where only its case is another."""
    known = {column.lower(): column for column in (*COLUMNS, *NUMBERS)}
    return known.get(name.strip().lower(), name.strip())


def _check_columns(columns: list[str], path: Path, required: Sequence[str]) -> None:
    missing = [column for column in required if column not in columns]
    if missing:
        hints = "".join(f"; {column}{hint}" for column in missing if (hint := _nearest(column, columns)))
        raise DataError(f"{path}: lacks the columns {', '.join(missing)}{hints}; it has {', '.join(columns)}")
    twice = sorted({column for column in columns if column and columns.count(column) > 1})
    if twice:
        raise DataError(f"{path}: has the columns {', '.join(twice)} twice")


def _nearest(column: str, columns: list[str]) -> str:
    other = next((name for name in columns if name.lower() in _OTHER_NAMES[column]), None)
    return f" (is {other!r} meant?)" if other else suggest(column, columns)


def _check_swallowed(
    records: list[tuple[int, list[str]]], lines: Sequence[str], columns: list[str], delimiter: str, path: Path
) -> None:
    """Refuses records of several lines whose lines are rows themselves: a quote that closes by chance."""
    if "mode" not in columns:
        return
    place = columns.index("mode")

    def split_at(line: str, index: int) -> bool:
        cells = line.rstrip("\r\n").split(delimiter)
        return len(cells) >= len(columns) and split_name(cells[index].strip('" ')) is not None

    ends = [start for start, _ in records[1:]] + [len(lines) + 1]
    for (start, cells), end in zip(records, ends, strict=True):
        if sum(cell.count("\n") + cell.count("\r") for cell in cells) == 0:
            continue
        inside = range(start, end)
        for number in inside:
            as_end = number != inside[-1] and split_at(lines[number - 1], place - len(columns))
            as_start = number != start and split_at(lines[number - 1], place)
            if as_end or as_start:
                opened = _opened(lines, start, max(number, start + 1))
                raise DataError(_unclosed(path, min(opened, number), end - 1))


def _check_widths(records: list[tuple[int, list[str]]], columns: list[str], path: Path) -> None:
    wrong = [f"line {line} has {len(cells)}" for line, cells in records if len(cells) != len(columns)]
    if wrong:
        raise DataError(
            f"{path}: expected {len(columns)} fields a row, as the header has, but {listed(wrong)}; a transcript that "
            "holds the mark between fields has to be quoted"
        )


def _note_texts(table: LabelTable) -> None:
    texts = [row["text"] for row in table.rows]
    broken = [line for line, text in zip(table.lines, texts, strict=True) if "\n" in text or "\r" in text]
    if broken:
        shown = texts[table.lines.index(broken[0])]
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        table.notes.append(
            f"{len(broken)} transcripts hold a line break inside their quotes, such as that of line {broken[0]}: "
            f"{shown!r}"
        )
    missing = ("nan", "NaN", "None", "NULL")
    words = [line for line, text in zip(table.lines, texts, strict=True) if text.strip() in missing]
    if words:
        table.notes.append(
            f"{len(words)} transcripts are the word for a missing value, such as that of line {words[0]}"
        )


def _check_splits(table: LabelTable, path: Path) -> None:
    wrong = []
    for line, row in zip(table.lines, table.rows, strict=True):
        split = split_name(row.get("mode", "test"))
        if split is None:
            wrong.append(f"row {line} has mode {row['mode']!r}")
        table.splits.append(split or "")
    if wrong:
        known = ", ".join(dict.fromkeys(SPLIT_NAMES.values()))
        raise DataError(f"{path}: {listed(wrong)}, expected one of {known}")


def _check_ids(table: LabelTable, path: Path) -> None:
    seen: dict[tuple[str, str], int] = {}
    wrong = []
    for line, row in zip(table.lines, table.rows, strict=True):
        clip = (row["video_id"], row["clip_id"])
        if "" in clip:
            wrong.append(f"row {line} has no {'video_id' if not clip[0] else 'clip_id'}")
        elif clip in seen:
            wrong.append(f"row {line} repeats clip {clip[1]!r} of video {clip[0]!r} (row {seen[clip]})")
        seen.setdefault(clip, line)
    if wrong:
        raise DataError(f"{path}: {listed(wrong)}")


def _numbers(table: LabelTable, column: str, path: Path, required: bool) -> list[float]:
    numbers, wrong, empty = [], [], []
    for line, row in zip(table.lines, table.rows, strict=True):
        cell = row.get(column, "")
        try:
            numbers.append(parse_number(cell))
        except ValueError as error:
            wrong.append(f"{cell!r} in row {line} ({error})")
            continue
        if numbers[-1] != numbers[-1]:
            empty.append(f"row {line}")
    if wrong:
        raise DataError(f"{path}: column {column} holds what is not a number: {listed(wrong)}")
    if required and empty:
        raise DataError(f"{path}: {len(empty)} labels are not a number: nothing in column {column} of {listed(empty)}")
    return numbers
