"""Results of a study: one JSON a cell, and one Parquet of all, which can stand for them.

``cell.json``, schema 1 (after PEFT's method comparison: what was run, how training went, how good, around what):

- ``schema``: 1; ``cell``: its name; ``status``: ``"finished"`` or ``"failed"``;
- ``run_info``: ``fingerprint`` (of settings, data and code), ``code`` (version of the training code), ``settings`` (as
  given to the recipe, dotted), ``values`` (what the report sorts by), ``seed``, ``processes``, ``attempts`` (starts;
  above 1 it was cut or failed before), ``reason`` (why it failed, else null), ``log_tail`` (its last lines, failed
  cells only);
- ``train_info``: ``parameters`` (trainable, total), ``step_flops``, ``geometry`` of that step, ``steps``,
  ``best_step``, ``epochs``, ``seconds`` (of training; null after more than one start), ``total_seconds`` (of the last
  start), ``peak_memory_mb``, ``fusion_layers``, ``gates`` (of the best adapter, layer -> gate -> value), ``curve``
  (the lines of ``metrics.jsonl``: training, validation and gates);
- ``metrics``: ``validation`` and ``test`` (see ``deepmlf_llm.tasks.metrics``), ``heads`` (split -> head -> metrics);
- ``meta_info``: ``environment``, ``base_model``, ``data``, as the training recipe states them.

A failed cell has null for ``metrics`` and for what only a finished run knows.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from deepmlf_llm.errors import RunError
from deepmlf_llm.extras import installed, require
from deepmlf_llm.files import file_aside, make_directory, write_aside, writing
from deepmlf_llm.paths import shown
from deepmlf_llm.reading import read_json
from deepmlf_llm.study.cells import PlannedCell
from deepmlf_llm.study.directory import CELLS, PARQUET, StudyDirectory
from deepmlf_llm.study.node import NODES
from deepmlf_llm.training.metrics_log import METRICS_FILE, finite, read_metrics

SCHEMA = 1
CELL, CONFIG, LOG, RUN = "cell.json", "config.yaml", "log.txt", "run"
TAIL = 15
_QUICK, _SMALL = 3, 19  # of zstd: after each cell, and with a report
_RECORD = "record"  # column of the Parquet: the whole cell.json
_SIGNALS = {9: "SIGKILL; often the system's answer to too little memory", 15: "SIGTERM", 2: "SIGINT", 6: "SIGABRT"}


def finished_record(cell: PlannedCell, folder: Path, code: str, attempts: int) -> dict[str, Any]:
    """``cell.json`` of a run that ended well.

    Args:
        cell: as planned.
        folder: of the cell.
        code: version of the code that ran.
        attempts: how often it was started.
    """
    result = read_json(folder / RUN / "result.json")
    train = result["train"]
    record = _record(cell, code, attempts, "finished")
    record["train_info"] |= {name: train.get(name) for name in ("steps", "best_step", "epochs", "total_seconds")}
    record["train_info"] |= {
        "parameters": train.get("parameters", record["train_info"]["parameters"]),
        "seconds": train.get("seconds") if attempts == 1 else None,
        **{name: train.get(name) for name in ("peak_memory_mb", "fusion_layers", "gates")},
        "curve": read_metrics(folder / RUN / METRICS_FILE),
    }
    record["metrics"] = {**result["metrics"], "heads": result.get("heads", {"validation": {}, "test": {}})}
    record["meta_info"] = {name: result[name] for name in ("environment", "base_model", "data")}
    return record


def failed_record(cell: PlannedCell, folder: Path, code: str, attempts: int, exit_code: int) -> dict[str, Any]:
    """``cell.json`` of a run that did not: the reason, and the last lines of its log."""
    record = _record(cell, code, attempts, "failed")
    tail = log_tail(folder / LOG)
    record["run_info"] |= {"reason": failure_reason(exit_code, tail), "log_tail": tail}
    return record


def _record(cell: PlannedCell, code: str, attempts: int, status: str) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "cell": cell.name,
        "status": status,
        "run_info": {
            "fingerprint": cell.fingerprint,
            "code": code,
            "settings": cell.settings,
            "values": cell.values,
            "seed": cell.seed,
            "processes": cell.processes,
            "attempts": attempts,
            "reason": None,
            "log_tail": [],
        },
        "train_info": {
            "parameters": {"trainable": cell.trainable, "total": cell.total},
            "step_flops": cell.step_flops,
            "geometry": cell.geometry,
        },
        "metrics": None,
        "meta_info": None,
    }


def log_tail(path: Path, lines: int = TAIL) -> list[str]:
    """The last lines of a log; of a line that was drawn over (progress bars), what stood there last."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 20_000))
        text = file.read().decode(errors="replace")
    kept = [line.rstrip().rpartition("\r")[2] for line in text.split("\n")]
    return [line for line in kept if line.strip()][-lines:]


def failure_reason(exit_code: int, tail: Sequence[str]) -> str:
    """One line: the recipe's own error line, the exception, or the signal."""
    said = [line for line in tail if line.startswith("error: ")]
    if said:
        return said[-1].removeprefix("error: ")
    signal = -exit_code if exit_code < 0 else exit_code - 128
    if signal in _SIGNALS:
        return f"ended by signal {signal} ({_SIGNALS[signal]})"
    raised = [line for line in tail if re.match(r"^[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b", line)]
    return raised[-1] if raised else f"ended with code {exit_code}"


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """``cell.json``: appears complete."""
    text = json.dumps(finite(record), indent=1, ensure_ascii=False, allow_nan=False)
    write_aside(folder / CELL, text + "\n")


def read_record(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """What is known of a cell; None where it has not ended, or what lies there is damaged or of another fingerprint."""
    record = _ended(folder)
    return record if record is not None and record["run_info"]["fingerprint"] == fingerprint else None


def _ended(folder: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = read_json(folder / CELL)
        whole = record["schema"] == SCHEMA and "fingerprint" in record["run_info"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if whole else None


def read_all(directory: StudyDirectory, cells: Iterable[PlannedCell]) -> list[dict[str, Any]]:
    """Records of the cells that have ended, in the grid's order; of a study that was put away, from its Parquet.

    Raises:
        RunError: the Parquet cannot be read.
    """
    if directory.put_away:
        kept = _kept_records(directory.path / PARQUET)
        found = [(cell, kept.get(cell.fingerprint)) for cell in cells]
    else:
        found = [(cell, read_record(directory.cell(cell.name), cell.fingerprint)) for cell in cells]
    return [_as_planned(cell, record) for cell, record in found if record is not None]


def _as_planned(cell: PlannedCell, record: dict[str, Any]) -> dict[str, Any]:
    """What a report sorts by is what this plan's rows name; an earlier grid may have named less of the same cell."""
    return {**record, "run_info": {**record["run_info"], "values": cell.values}}


def is_finished(record: dict[str, Any] | None) -> bool:
    """A cell that failed is not: what made it fail may be gone, so it is tried again."""
    return record is not None and record["status"] == "finished"


def records_there(directory: StudyDirectory) -> dict[str, dict[str, Any]]:
    """Fingerprint -> record of all cells that have ended in a folder, of whatever start, as they are.

    Raises:
        RunError: the Parquet cannot be read.
    """
    if directory.put_away:
        return _kept_records(directory.path / PARQUET)
    records = (_ended(folder) for folder in sorted((directory.path / CELLS).glob("*")))
    return {record["run_info"]["fingerprint"]: record for record in records if record is not None}


def _kept_records(path: Path) -> dict[str, dict[str, Any]]:
    """The whole records of :func:`write_parquet` by their fingerprints."""
    parquet = require("pyarrow.parquet", f"a study's cells from {PARQUET}")
    unread = f"{shown(path)}: cannot be read as the cells of a study"
    try:
        if _RECORD not in parquet.read_schema(path).names:
            raise RunError(f"{unread}: an earlier version wrote it, without the column {_RECORD}; put cells/ back")
        texts = parquet.read_table(path, columns=[_RECORD], page_checksum_verification=True)[_RECORD].to_pylist()
        records = list(map(json.loads, texts))
        newer = sorted({record["schema"] for record in records} - {SCHEMA})
        kept = {record["run_info"]["fingerprint"]: record for record in records}
    except (OSError, ValueError, KeyError, TypeError) as error:  # ArrowInvalid is a ValueError
        raise RunError(f"{unread}: {error}") from None
    if newer:
        raise RunError(f"{unread}: layout version {newer[0]}, this package reads {SCHEMA}")
    return kept


def flat_row(record: dict[str, Any]) -> dict[str, Any]:
    """A record as one row: plain values by dotted names; its settings, and the whole of it, as JSON."""
    run, train = record["run_info"], record["train_info"]
    row: dict[str, Any] = {"cell": record["cell"], "status": record["status"]}
    row |= {name: run[name] for name in ("seed", "fingerprint", "code", "processes", "attempts", "reason")}
    row |= {f"values.{name}": _plain(value) for name, value in run["values"].items()}
    row |= {"parameters.trainable": train["parameters"]["trainable"], "parameters.total": train["parameters"]["total"]}
    numbers = ("step_flops", "steps", "best_step", "epochs", "seconds", "total_seconds")
    row |= {name: train.get(name) for name in numbers}
    row["peak_memory_mb"] = (train.get("peak_memory_mb") or {}).get("resident")
    metrics = record["metrics"] or {}
    for split in ("validation", "test"):
        row |= {f"{split}.{name}": value for name, value in (metrics.get(split) or {}).items()}
        for head, values in (metrics.get("heads") or {}).get(split, {}).items():
            row |= {f"{split}.{head}.{name}": value for name, value in values.items()}
    row["settings"] = json.dumps(run["settings"], sort_keys=True)
    row[_RECORD] = json.dumps(record, ensure_ascii=False, allow_nan=False)
    return row


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, bool, type(None))) else json.dumps(value)


def write_parquet(directory: StudyDirectory, records: Sequence[dict[str, Any]], apart: str = "") -> bool:
    """All cells in one table, one row each; False where ``pyarrow`` is not installed (it comes with ``datasets``).

    Args:
        directory: of the study.
        records: of all cells that have ended.
        apart: name of this node, where others may write the table at the same time.
    """
    if not installed("pyarrow"):
        return False
    import pyarrow
    from pyarrow import parquet

    rows = [flat_row(record) for record in records]
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    columns = {name: values if _one_kind(values) else [_as_text(v) for v in values] for name, values in columns.items()}
    place = directory.path / PARQUET
    own = directory.path / NODES / f"{apart}.{PARQUET}" if apart else place
    make_directory(own.parent)  # nodes/ may have been removed
    with file_aside(own, shared=not apart) as aside:
        parquet.write_table(  # a hundred columns of few rows: dictionaries and statistics of each would be a quarter
            pyarrow.table(columns),
            aside,
            compression="zstd",
            compression_level=_QUICK if apart else _SMALL,
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )
    if apart:
        with writing(place):
            os.replace(own, place)
    return True


def _one_kind(values: list[Any]) -> bool:
    kinds = {type(value) for value in values if value is not None}
    return len(kinds) <= 1 or kinds == {int, float}


def _as_text(value: Any) -> str | None:
    return None if value is None else str(value)
