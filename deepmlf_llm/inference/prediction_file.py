"""A file of utterances through a predictor: streamed, in order, going on where an earlier run stopped.

One row never ends the job: whatever it holds, it is predicted or becomes a line with its error.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from deepmlf_llm.data.columns import Columns, check_identity
from deepmlf_llm.data.inputs import Input, open_input
from deepmlf_llm.data.rows import Row
from deepmlf_llm.errors import DataError
from deepmlf_llm.inference.output_file import PartialOutput, partial_output
from deepmlf_llm.inference.predictions import ClassPrediction, Prediction
from deepmlf_llm.inference.predictor import SentimentPredictor

CHUNK_BATCHES = 8  # rows are sorted by length within so many batches, and written after them
CHUNK_BYTES = 1 << 28
OUTSIZED_BYTES = 1 << 22
"""A row of more features than this is predicted alone: in a batch, every other row would be padded to its length."""

SHOWN_ERRORS = 50
SOME_BAD, NONE_GOOD = 3, 2


@dataclass
class FileReport:
    """What :func:`predict_file` did.

    Attributes:
        rows: of the input.
        bad: rows that could not be predicted, those of an earlier run included.
        found: rows that an earlier run had written.
        notes: what was odd, one sentence each.
    """

    rows: int = 0
    bad: int = 0
    found: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0: all rows are good; 3: some are bad; 2: none is good."""
        return 0 if not self.bad else SOME_BAD if self.bad < self.rows else NONE_GOOD


def check_files(source: Path, output: Path, batch_size: int) -> None:
    """What can be said before anything is read.

    Raises:
        DataError: the input is missing, the output exists or has no directory.
    """
    if batch_size < 1:
        raise DataError(f"--batch_size={batch_size}: expected an integer >= 1")
    if not source.exists():
        raise DataError(f"--input {source}: no such file or folder")
    if not output.parent.is_dir():
        raise DataError(f"--output {output}: its directory is not there")
    if output.exists():
        raise DataError(f"--output {output}: exists; move it away or name another file")


def predict_file(
    predictor: SentimentPredictor,
    source: Input | Path,
    output: Path,
    strict: bool = False,
    progress: bool | None = None,
    made_by: Mapping[str, str] | None = None,
    columns: Columns | None = None,
) -> FileReport:
    """Predicts every row of ``source`` into ``output``, in order.

    Lines go to ``<output>.partial``, flushed chunk by chunk; the file is renamed when it is whole. Another call goes
    on after the lines that are there, if they are of the same input and made by the same model and settings, as noted
    in ``<output>.partial.json``.

    Args:
        predictor: the model.
        source: as :func:`deepmlf_llm.data.inputs.open_input` opens it, or its path.
        output: JSON Lines.
        strict: stop at the first bad row instead of writing its error.
        progress: show a bar; default: on a terminal.
        made_by: what predictions depend on beside the input, by name, e.g. the hash of the adapter.
        columns: which keys of a row are read; default: the model's modalities by their names.

    Raises:
        DataError: with ``strict``, a bad row, by number; the lines before it are kept in ``<output>.partial``. Or lines
            of an earlier run that was another, or a place that cannot be written.
    """
    columns = columns or Columns(predictor.config.modalities)
    if isinstance(source, Path):
        source = open_input(source, columns, predictor.config)
    job = _Job(predictor, source, columns, strict)
    hidden = not (sys.stderr.isatty() if progress is None else progress)
    made_of = {"input": source.identity(), **(made_by or {})}
    with partial_output(output, made_of) as partial, tqdm(unit="rows", disable=hidden) as bar:
        rows = job.rows_after(partial, output)
        bar.update(partial.found)
        for chunk in job.chunks(rows):
            lines = job.predict(chunk)
            partial.write(lines)
            job.report.rows += len(lines)
            bar.update(len(lines))
            if job.stopped_by is not None:
                kept = f"; the {job.report.rows} lines before it are in {output}.partial" if job.report.rows else ""
                raise DataError(job.stopped_by + kept)
        if not job.report.rows:
            raise DataError(f"{source.path}: holds no rows")
    job.report.notes += [*source.notes, *job.notes()]
    return job.report


class _Job:
    """The rows of one call of :func:`predict_file`."""

    def __init__(self, predictor: SentimentPredictor, source: Input, columns: Columns, strict: bool) -> None:
        self.predictor, self.source, self.columns, self.strict = predictor, source, columns, strict
        self.report = FileReport()
        self.stopped_by: str | None = None
        self.shown = 0
        self.identities: set[int] = set()
        self.repeated = 0

    def rows_after(self, partial: PartialOutput, output: Path) -> Iterator[Row]:
        """The rows that an earlier run has not written to ``output``.

        Raises:
            DataError: it has written more lines than there are rows.
        """
        report, rows = self.report, self.source.rows()
        report.found, report.bad = partial.found, partial.bad
        report.rows = sum(1 for _ in islice(rows, report.found))
        if report.rows < report.found:
            raise DataError(f"{output}.partial has {report.found} lines, {self.source.path} only {report.rows} rows")
        return rows

    def chunks(self, rows: Iterator[Row]) -> Iterator[list[tuple[Row, Any, dict[str, Any] | str]]]:
        """Rows prepared for the model, a few batches at a time, fewer where they are large.

        Yields:
            Lists of row, id, and what the model reads or what is wrong.
        """
        chunk: list[tuple[Row, Any, dict[str, Any] | str]] = []
        held = 0
        for row in rows:
            identity, item = self._prepare(row)
            chunk.append((Row(row.number, row.line, {}), identity, item))
            held += 0 if isinstance(item, str) else _size(item)
            if len(chunk) >= self.predictor.batch_size * CHUNK_BATCHES or held > CHUNK_BYTES:
                yield chunk
                chunk, held = [], 0
        if chunk:
            yield chunk

    def _prepare(self, row: Row) -> tuple[Any, dict[str, Any] | str]:
        identity = None
        try:
            if row.error is not None:
                raise DataError(row.error)
            values = self.columns.read(row.values)
            identity = values.get("id")
            features = {name: values.get(name) for name in self.predictor.config.modalities}
            options = {"standardised": True} if self.source.prepared else {}
            text: Any = values.get("text")
            return identity, self.predictor.prepare(text, features, **options)
        except DataError as error:
            return identity if identity is not None else _identity(row, self.columns), str(error)
        finally:
            self._note_identity(identity)

    def _note_identity(self, identity: Any) -> None:
        key = hash(identity)
        self.repeated += identity is not None and key in self.identities
        if identity is not None and len(self.identities) < 1 << 21:
            self.identities.add(key)

    def predict(self, chunk: list[tuple[Row, Any, dict[str, Any] | str]]) -> list[dict[str, Any]]:
        """A line for each row of a chunk; with ``strict`` for those before the first bad row, which is noted."""
        results: dict[int, Prediction | ClassPrediction | str] = {}
        small = [i for i, (_, _, item) in enumerate(chunk) if isinstance(item, dict) and _size(item) <= OUTSIZED_BYTES]
        large = [i for i, (_, _, item) in enumerate(chunk) if isinstance(item, dict) and _size(item) > OUTSIZED_BYTES]
        for places in (small, *([i] for i in large)):
            items: list[Any] = [chunk[i][2] for i in places]
            results.update(zip(places, predict_each(self.predictor, items), strict=True))
        lines: list[dict[str, Any]] = []
        for i, (row, identity, item) in enumerate(chunk):
            result = item if isinstance(item, str) else results[i]
            if isinstance(result, str) and self.strict:
                self.stopped_by = f"{row.place}: {result}"
                return lines
            if isinstance(result, str):
                self._say_bad(row, result)
                lines.append({"id": identity, "error": result})
            else:
                lines.append({"id": identity, **result.to_dict()})
        return lines

    def _say_bad(self, row: Row, error: str) -> None:
        self.report.bad += 1
        self.shown += 1
        if self.shown <= SHOWN_ERRORS:
            tqdm.write(f"{row.place}: {error}", file=sys.stderr)

    def notes(self) -> Iterable[str]:
        """What was odd."""
        if self.shown > SHOWN_ERRORS:
            yield f"{self.shown - SHOWN_ERRORS} more bad rows, each with its error in the output"
        if unread := self.columns.unread_note():
            yield unread
        yield from self.columns.unmet_notes()
        if self.repeated:
            yield f"{self.repeated} rows repeat the id of another row"


def predict_each(predictor: SentimentPredictor, items: list[Any]) -> list[Prediction | ClassPrediction | str]:
    """Predictions in order; where a batch fails, each item alone, and for one that fails what is wrong with it."""
    if not items:
        return []
    try:
        return [_checked(prediction) for prediction in predictor.predict_prepared(items)]
    except (DataError, MemoryError, RuntimeError) as error:
        if not isinstance(error, DataError) and not _is_out_of_memory(error):
            raise
        if len(items) == 1:
            return [f"cannot be predicted: {' '.join(str(error).split())[:200]}"]
    return [result for item in items for result in predict_each(predictor, [item])]


def _checked(prediction: Prediction | ClassPrediction) -> Prediction | ClassPrediction | str:
    if prediction.is_finite():
        return prediction
    return "cannot be predicted: the model's output is not finite, as with features far from those of its training"


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return "allocate memory" in str(error) or "out of memory" in str(error)


def _size(item: Mapping[str, Any]) -> int:
    return sum(value.nbytes for value in item.values() if hasattr(value, "nbytes"))


def _identity(row: Row, columns: Columns) -> Any:
    """The id of a bad row, where it has one that can be written."""
    keys = [key for key, name in columns.rename.items() if name == "id"] or ["id"]
    value = row.values.get(keys[0])
    try:
        check_identity(value)
    except DataError:
        return None
    return value
