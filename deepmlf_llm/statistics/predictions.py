"""Predictions of whole splits as a file: what stands behind every score, and what two runs are compared by.

One Parquet file, one row an utterance: ``split`` ("valid", "test"), ``id``, ``label``, ``polarity`` (the prediction),
and the polarity of each head alone (``text_polarity``, ..). The metadata of its schema say the label rule. It is
written where pyarrow is installed (``[study]``; the library ``datasets`` brings it too).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmlf_llm.errors import DataError
from deepmlf_llm.extras import installed, missing, require
from deepmlf_llm.files import file_aside
from deepmlf_llm.paths import shown
from deepmlf_llm.reading import parse_json
from deepmlf_llm.tasks.registry import Task, task_of

FILE = "predictions.parquet"
POLARITY = "polarity"
_METADATA, _SCHEMA = b"deepmlf_llm", 1
_FIXED = ("split", "id", "label")


@dataclass(frozen=True)
class Predictions:
    """What was predicted of one split.

    Attributes:
        dataset: label rule: "mosi", "sims", .., or the name of a task of one's own.
        split: "train", "valid" or "test".
        ids: of the utterances [n].
        labels: polarity [n] float32; of classes the index of each, or with several labels 0 and 1 [n x c].
        heads: "polarity" (the prediction) and each head's own, by name [n] float32; of classes logits [n x c].
        task: rules of a task of one's own, or classes, as the manifest has them; None: ``dataset`` says all.
    """

    dataset: str
    split: str
    ids: Sequence[str]
    labels: NDArray[np.float32]
    heads: Mapping[str, NDArray[np.float32]]
    task: Mapping[str, Any] | None = None

    @property
    def rules(self) -> Task:
        """What the labels mean."""
        return task_of(self.dataset, self.task)

    def head(self, name: str = POLARITY) -> NDArray[np.float32]:
        """One head's polarity [n].

        Raises:
            DataError: there is no such head.
        """
        if name not in self.heads:
            raise DataError(f"no head {name!r}; there are {', '.join(self.heads)}")
        return self.heads[name]


def utterance_ids(dataset: object, size: int) -> list[str]:
    """The ids of a split's utterances; where it has none, their rows."""
    known = getattr(dataset, "ids", None)
    found = [dataset[i].get("id") for i in range(size)] if known is None else known  # type: ignore[index]
    return [str(row if identity is None else identity) for row, identity in enumerate(found)]


def write_predictions(path: Path, splits: Iterable[Predictions]) -> str | None:
    """Writes the predictions of some splits as one file.

    Returns:
        None; or the sentence that says why there is none: pyarrow is not installed.

    Raises:
        FileError: it cannot be written.
    """
    if not installed("pyarrow"):  # training goes on without
        return missing("pyarrow", f"no {path.name}, which two runs are compared by: it")
    import pyarrow
    from pyarrow import parquet

    tables = []
    for split in splits:
        columns = {
            "split": pyarrow.array([split.split] * len(split.ids), pyarrow.string()),
            "id": pyarrow.array(list(split.ids), pyarrow.string()),
            "label": _column(split.labels),
            **{name: _column(values) for name, values in split.heads.items()},
        }
        held = {"schema": _SCHEMA, "dataset": split.dataset}
        facts = json.dumps(held | ({} if split.task is None else {"task": dict(split.task)}))
        tables.append(pyarrow.table(columns).replace_schema_metadata({_METADATA: facts.encode()}))
    with file_aside(path) as aside:
        parquet.write_table(pyarrow.concat_tables(tables), aside)
    return None


def _column(values: NDArray[np.float32]) -> Any:
    """[n] as numbers, [n x c] as lists of c numbers."""
    import pyarrow

    numbers = np.asarray(values, np.float32)
    flat = pyarrow.array(numbers.reshape(-1))
    return flat if numbers.ndim == 1 else pyarrow.FixedSizeListArray.from_arrays(flat, numbers.shape[1])


def read_predictions(path: Path, split: str | None = None) -> Predictions:
    """The predictions of one split.

    Args:
        path: a file that :func:`write_predictions` wrote.
        split: which; default: "test", or the only one there is.

    Raises:
        DataError: not there, no such file, or no such split.
        MissingPackageError: pyarrow is not installed.
    """
    pyarrow = require("pyarrow", "reading predictions")
    parquet = require("pyarrow.parquet", "reading predictions")
    name = shown(path)
    if not path.is_file():
        raise DataError(f"{name}: no such file")
    try:
        table = parquet.read_table(path)
        facts = parse_json((table.schema.metadata or {})[_METADATA].decode())
        dataset, task = str(facts["dataset"]), facts.get("task")
        task_of(dataset, task)
        columns = {key: _array(table.column(key)) for key in table.column_names}
        splits = columns["split"].tolist()
        own = {key: columns[key] for key in table.column_names if key not in _FIXED}
        labels, ids = columns["label"], columns["id"].tolist()
        if POLARITY not in own:
            raise ValueError(f"no column {POLARITY!r}")
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        raise DataError(f"{name}: is not a file of predictions ({' '.join(str(error).split())[:120]})") from None
    there = list(dict.fromkeys(splits))
    wanted = split or (there[0] if len(there) == 1 else "test")
    rows = np.asarray([value == wanted for value in splits], dtype=bool)
    if not rows.any():
        raise DataError(f"{name}: no predictions of split {wanted!r}; it has {', '.join(map(str, there))}")
    kept = [str(identity) for identity, keep in zip(ids, rows, strict=True) if keep]
    heads = {key: values[rows] for key, values in own.items()}
    return Predictions(dataset, wanted, kept, labels[rows], heads, task)


def _array(column: Any) -> NDArray[Any]:
    values = column.to_numpy()
    return np.stack(values) if values.dtype == object and len(values) and isinstance(values[0], np.ndarray) else values
