"""A file of utterances through a predictor: streamed, in order, going on where an earlier run stopped."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from deepmlf_llm.errors import DataError
from deepmlf_llm.extras import require
from deepmlf_llm.files import sha256
from deepmlf_llm.inference.predictor import SentimentPredictor

CHUNK_BATCHES = 8  # rows are sorted by length within so many batches, and written after them


@dataclass
class FileReport:
    """What :func:`predict_file` did.

    Attributes:
        rows: of the input.
        bad: rows that could not be predicted.
        found: rows that an earlier run had written.
    """

    rows: int = 0
    bad: int = 0
    found: int = 0


def check_files(source: Path, output: Path, batch_size: int) -> None:
    """What can be said before a model is loaded.

    Raises:
        DataError: the input is missing or of another kind, the output exists or has no directory.
    """
    if batch_size < 1:
        raise DataError(f"--batch_size={batch_size}: expected an integer >= 1")
    if not source.is_file():
        raise DataError(f"--input {source}: no such file")
    if source.suffix not in (".jsonl", ".parquet"):
        raise DataError(f"--input {source}: expected a .jsonl or .parquet file")
    if not output.parent.is_dir():
        raise DataError(f"--output {output}: its directory is not there")
    if output.exists():
        raise DataError(f"--output {output}: exists; move it away or name another file")


def predict_file(
    predictor: SentimentPredictor,
    source: Path,
    output: Path,
    strict: bool = False,
    progress: bool | None = None,
    made_by: Mapping[str, str] | None = None,
) -> FileReport:
    """Predicts every row of ``source`` into ``output``, in order.

    Lines go to ``<output>.partial``, flushed chunk by chunk; the file is renamed when it is whole. Another call goes
    on after the lines that are there, if they are of the same input and made by the same model and settings, as noted
    in ``<output>.partial.json``.

    Args:
        predictor: the model.
        source: JSON Lines or Parquet, see ``recipes/predict.py``.
        output: JSON Lines.
        strict: stop at the first bad row instead of writing its error.
        progress: show a bar; default: on a terminal.
        made_by: what predictions depend on beside the input, by name, e.g. the hash of the adapter.

    Raises:
        DataError: with ``strict``, a bad row, by number; the lines before it are kept in ``<output>.partial``. Or lines
            of an earlier run that was another.
    """
    partial = output.with_name(output.name + ".partial")
    note = partial.with_name(partial.name + ".json")
    report = FileReport(found=_whole_lines(partial))
    _begin(partial, note, report.found, {"input": sha256(source), **(made_by or {})})
    size = predictor.batch_size * CHUNK_BATCHES
    rows = enumerate(_rows(source), start=1)
    report.rows = sum(1 for _ in islice(rows, report.found))
    if report.rows < report.found:
        raise DataError(
            f"{partial} has {report.found} lines, {source} only {report.rows}: not of this input; delete it"
        )
    hidden = not (sys.stderr.isatty() if progress is None else progress)
    # Half a surrogate pair in an id comes out as JSON's own escape, as it came in.
    with (
        partial.open("a", encoding="utf-8", errors="backslashreplace") as file,
        tqdm(initial=report.found, unit="rows", disable=hidden) as bar,
    ):
        while chunk := list(islice(rows, size)):
            _write(file, _predict_chunk(predictor, chunk, strict, report))
            report.rows += len(chunk)
            bar.update(len(chunk))
    os.replace(partial, output)
    note.unlink()
    return report


def _begin(partial: Path, note: Path, found: int, facts: dict[str, str]) -> None:
    """Notes what a run is about to be made of; where lines are there, compares it with what they were made of.

    Raises:
        DataError: they are of another run, or nothing says of which.
    """
    if not found:  # a note that a kill tears has no lines yet, and is written again
        note.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        return
    try:
        before = json.loads(note.read_text(encoding="utf-8"))
        other = [name for name in {**facts, **before} if before.get(name) != facts.get(name)]
    except (OSError, ValueError, AttributeError, TypeError):
        other = [f"nobody knows what ({note.name} is missing or damaged)"]
    if other:
        raise DataError(
            f"{partial} holds {found} lines of another run: other {', '.join(other)}; delete it to start anew, or name "
            "another --output"
        )


def _predict_chunk(
    predictor: SentimentPredictor, chunk: list[tuple[int, Any]], strict: bool, report: FileReport
) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    items, places = [], []
    for number, row in chunk:
        identity = row.get("id") if isinstance(row, dict) else None
        try:
            items.append(_prepared(predictor, row))
            places.append(len(lines))
            lines.append({"id": identity})
        except DataError as error:
            if strict:
                raise DataError(f"row {number}: {error}") from error
            report.bad += 1
            tqdm.write(f"row {number}: {error}", file=sys.stderr)
            lines.append({"id": identity, "error": str(error)})
    for place, prediction in zip(places, predictor.predict_prepared(items), strict=True):
        lines[place] |= prediction.to_dict()
    return lines


def _prepared(predictor: SentimentPredictor, row: Any) -> dict[str, Any]:
    if isinstance(row, DataError):
        raise row
    return predictor.prepare(row.get("text"), {name: row.get(name) for name in predictor.config.modalities})


def _rows(source: Path) -> Iterator[Any]:
    """Rows as dictionaries; a line that is none comes as the error it makes."""
    if source.suffix == ".parquet":
        parquet = require("pyarrow.parquet", f"reading {source.name}")
        for batch in parquet.ParquetFile(source).iter_batches(batch_size=64):
            yield from batch.to_pylist()
        return
    with source.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError as error:
                yield DataError(f"not JSON ({error})")
                continue
            yield row if isinstance(row, dict) else DataError(f"expected an object, got {type(row).__name__}")


def _whole_lines(partial: Path) -> int:
    """Lines written to their end; a torn last one is cut off."""
    if not partial.exists():
        return 0
    content = partial.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with partial.open("r+b") as file:
            file.truncate(len(whole))
    return whole.count(b"\n")


def _write(file: IO[str], lines: list[dict[str, Any]]) -> None:
    file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    file.flush()
    os.fsync(file.fileno())
