"""A file of predictions while it is written: of one process at a time, continued after a cut, renamed when whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from deepmlf_llm.errors import DataError
from deepmlf_llm.file_locks import held
from deepmlf_llm.files import write_aside, writing
from deepmlf_llm.reading import read_json


@dataclass
class PartialOutput:
    """Lines of ``<output>.partial``.

    Attributes:
        file: open for appending.
        found: lines that an earlier run had written.
        bad: how many of those hold an error.
    """

    file: IO[str]
    found: int
    bad: int

    def write(self, lines: list[dict[str, Any]]) -> None:
        """Appends lines; they are on the disk when this returns."""
        # Half a surrogate pair in an id comes out as JSON's own escape, as it came in.
        self.file.writelines(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
        self.file.flush()
        os.fsync(self.file.fileno())


@contextmanager
def partial_output(output: Path, made_of: Mapping[str, Any]) -> Iterator[PartialOutput]:
    """``<output>.partial``, held as long as this process writes it; renamed to ``output`` if all goes well.

    Lines of an earlier run are kept if they are made of the same, as noted in ``<output>.partial.json``.

    Args:
        output: the file to make.
        made_of: what its lines depend on, by name: input, model, settings.

    Raises:
        DataError: ``output`` is there, or lines of another run are.
        FileError: another process is writing it, or it cannot be written.
    """
    path = output.with_name(output.name + ".partial")
    note = path.with_name(path.name + ".json")
    with held(output, "writes it"), writing(output):
        if output.exists():  # another process has finished it since this one looked
            raise DataError(f"--output {output}: exists; move it away or name another file")
        try:
            with path.open("a+", encoding="utf-8", errors="backslashreplace") as file:
                found, bad, size = _whole_lines(file, path)
                _begin(path, note, found, made_of)
                file.truncate(size)  # not before it is known to be ours
                yield PartialOutput(file, found, bad)
            if output.exists():
                raise DataError(f"--output {output}: appeared meanwhile; the predictions are in {path}")
            os.replace(path, output)
            note.unlink(missing_ok=True)
        except BaseException:
            if path.is_file() and not path.stat().st_size:  # nothing to continue with
                note.unlink(missing_ok=True)
                path.unlink()
            raise


def _whole_lines(file: IO[str], path: Path) -> tuple[int, int, int]:
    """How many lines were written to their end, how many of those hold an error, and the bytes of them all.

    Raises:
        DataError: one is damaged.
    """
    whole = bad = size = 0
    with open(file.fileno(), "rb", closefd=False) as raw:
        raw.seek(0)
        for line in raw:
            if not line.endswith(b"\n"):
                break
            size += len(line)
            whole += 1
            try:
                bad += b'"error": ' in line and "error" in json.loads(line)
            except ValueError:
                raise DataError(f"{path}: line {whole} is damaged; delete the file to start again") from None
    return whole, bad, size


def _begin(path: Path, note: Path, found: int, made_of: Mapping[str, Any]) -> None:
    """Notes what a run is about to be made of; where lines are there, compares it with what they were made of.

    Raises:
        DataError: they are of another run, or nothing says of which.
    """
    # A note that a kill tears has no lines yet, and is written again; without one, half a line is not of ours.
    if not found and (note.exists() or not path.stat().st_size):
        write_aside(note, json.dumps(made_of, indent=2) + "\n")
        return
    try:
        before = read_json(note)
        other = [name for name in {**made_of, **before} if before.get(name) != made_of.get(name)]
    except (OSError, ValueError, AttributeError, TypeError):
        other = [f"nobody knows what ({note.name} is missing or damaged)"]
    if other:
        raise DataError(
            f"{path} holds {found} lines of another run: other {', '.join(other)}; delete it to start again, or name "
            "another --output"
        )
