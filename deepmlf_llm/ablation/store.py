"""Results of an ablation that outlive its runs: predictions of every utterance in one Parquet file, facts in one JSON.

``predictions.parquet``, one row an utterance of a run: ``variant``, ``part`` (of a cross-validation, from 0),
``seed``, ``split`` ("valid", "test"), ``id``, ``label``, ``polarity`` and ``text_polarity`` (of the text head; null
where there is none). ``variants.json``: fingerprint, settings that differ, and of each run trained parameters, seconds
and a digest of its data. From these two files alone the table and the figure are made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deepmlf_llm.ablation.plan import Variant
from deepmlf_llm.errors import DataError
from deepmlf_llm.extras import require
from deepmlf_llm.files import file_aside, write_aside
from deepmlf_llm.paths import shown
from deepmlf_llm.reading import read_json
from deepmlf_llm.statistics.comparing import TEXT_HEAD, Entry
from deepmlf_llm.statistics.predictions import FILE, POLARITY, Predictions, read_predictions
from deepmlf_llm.training.run_directory import RESULT

FACTS = "variants.json"
SPLITS = ("valid", "test")
_SCHEMA = 1
_COLUMNS = ("variant", "part", "seed", "split", "id", "label", POLARITY, TEXT_HEAD)


class Store:
    """The two files in ``directory``; empty where there are none.

    Raises:
        DataError: they are damaged, or of a later version.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.facts: dict[str, Any] = {"schema": _SCHEMA, "variants": {}}
        self.rows: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
        if (directory / FACTS).exists():
            self._read()

    def _read(self) -> None:
        parquet = require("pyarrow.parquet", "reading the results of an ablation")
        try:
            self.facts = read_json(self.directory / FACTS)
            if self.facts["schema"] != _SCHEMA:
                raise ValueError(f"schema {self.facts['schema']}, this package reads {_SCHEMA}")
            if (self.directory / FILE).exists():
                table = parquet.read_table(self.directory / FILE, page_checksum_verification=True)
                self.rows = {name: table.column(name).to_pylist() for name in _COLUMNS}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{shown(self.directory)}: no results of an ablation ({error})") from None

    def holds(self, variant: Variant) -> bool:
        """Whether what is stored under the variant's name was made with its settings."""
        known = self.facts["variants"].get(variant.name, {})
        return bool(known.get("fingerprint") == variant.fingerprint)

    def missing(self, variant: Variant, part: int) -> list[int]:
        """Seeds of the variant on one data directory of which no result is stored."""
        if not self.holds(variant):
            return list(variant.seeds)
        known = self.facts["variants"][variant.name]
        return [seed for seed in variant.seeds if f"{part}/{seed}" not in known["runs"]]

    def check_data(self, variant: Variant, part: int, splits: Mapping[str, Any]) -> None:
        """Refuses results that are stored under the variant's name, and were made from other data.

        Args:
            variant: whose.
            part: which of the data directories.
            splits: what is in that directory now: name -> its rows and digest.

        Raises:
            DataError: they were.
        """
        if not self.holds(variant):
            return
        for run, facts in self.facts["variants"][variant.name]["runs"].items():
            if run.startswith(f"{part}/"):
                self._check_made_from(facts.get("data"), variant, part, splits)

    def _check_made_from(self, digest: str | None, variant: Variant, part: int, splits: Mapping[str, Any]) -> None:
        if digest not in (None, _digest(splits)):  # results of older versions do not say
            raise DataError(
                f"{shown(self.directory)}: its results of {variant.name!r} were made from other data than "
                f"{variant.data[part]} holds now; name another --output"
            )

    def add(self, variant: Variant, part: int, runs: Mapping[int, Path], splits: Mapping[str, Any]) -> None:
        """Takes in finished runs.

        Args:
            variant: whose.
            part: on which of the data directories.
            runs: seed -> directory of the run.
            splits: as of :meth:`check_data`.

        Raises:
            DataError: a run was made from other data; none is taken in.
        """
        results = {seed: read_json(directory / RESULT) for seed, directory in runs.items()}
        facts = {seed: _facts(result) for seed, result in results.items()}
        for seed in runs:
            self._check_made_from(facts[seed]["data"], variant, part, splits)
        variants = self.facts["variants"]
        if not self.holds(variant):
            self._forget(variant.name)
            about = {"group": variant.group, "changes": dict(variant.changes), "fingerprint": variant.fingerprint}
            variants[variant.name] = {**about, "runs": {}}
        for seed, directory in runs.items():
            self.facts["environment"] = results[seed]["environment"]
            variants[variant.name]["runs"][f"{part}/{seed}"] = facts[seed]
            for split in SPLITS:
                self._append(variant.name, part, seed, read_predictions(directory / FILE, split))

    def _append(self, name: str, part: int, seed: int, found: Predictions) -> None:
        self.facts |= {"dataset": found.dataset, "task": None if found.task is None else dict(found.task)}
        count = len(found.ids)
        text = found.heads.get(TEXT_HEAD)
        new = {
            "variant": [name] * count,
            "part": [part] * count,
            "seed": [seed] * count,
            "split": [found.split] * count,
            "id": list(found.ids),
            "label": found.labels.tolist(),
            POLARITY: found.head().tolist(),
            TEXT_HEAD: [None] * count if text is None else text.tolist(),
        }
        for column, values in new.items():
            self.rows[column] += values

    def _forget(self, name: str) -> None:
        kept = [row for row, variant in enumerate(self.rows["variant"]) if variant != name]
        self.rows = {column: [values[row] for row in kept] for column, values in self.rows.items()}

    def write(self) -> None:
        """Both files, each complete or as it was.

        Raises:
            FileError: they cannot be written.
        """
        import pyarrow
        from pyarrow import parquet

        types = {"part": pyarrow.int16(), "seed": pyarrow.int64(), "label": pyarrow.float32()}
        types |= dict.fromkeys((POLARITY, TEXT_HEAD), pyarrow.float32())
        columns = {name: pyarrow.array(values, types.get(name, pyarrow.string())) for name, values in self.rows.items()}
        with file_aside(self.directory / FILE) as aside:
            words = [name for name in columns if not pyarrow.types.is_floating(columns[name].type)]
            parquet.write_table(  # split into their bytes, floats take two thirds
                pyarrow.table(columns),
                aside,
                compression="zstd",
                compression_level=19,
                use_dictionary=words,
                use_byte_stream_split=True,
                write_page_checksum=True,
            )
        write_aside(self.directory / FACTS, json.dumps(self.facts, indent=1, ensure_ascii=False) + "\n")

    def entries(self, variants: Iterable[Variant], parts: int, split: str) -> dict[str, Entry]:
        """Variant -> its runs, one for each of its seeds that is there on every data directory, whose predictions are
        put together."""
        dataset, task = self.facts.get("dataset", ""), self.facts.get("task")
        columns = {name: np.asarray(self.rows[name], object) for name in _COLUMNS}
        of_split = (columns["split"] == split) & (columns["part"] < parts)
        found = {}
        for variant in variants:
            name = variant.name
            runs = self.facts["variants"].get(name, {}).get("runs", {})
            whole = [seed for seed in variant.seeds if all(f"{part}/{seed}" in runs for part in range(parts))]
            mine = of_split & (columns["variant"] == name)
            made = []
            for seed in whole:
                rows = np.flatnonzero(mine & (columns["seed"] == seed))
                values = {head: columns[head][rows] for head in (POLARITY, TEXT_HEAD)}
                heads = {h: v.astype(np.float32) for h, v in values.items() if all(x is not None for x in v)}
                labels = columns["label"][rows].astype(np.float32)
                made.append(Predictions(dataset, split, columns["id"][rows].tolist(), labels, heads, task))
            if made:
                found[name] = Entry(name, [f"seed-{seed}" for seed in whole], made)
        return found

    def trained(self, name: str) -> int | None:
        """Trained parameters."""
        runs = self.facts["variants"].get(name, {}).get("runs", {}).values()
        return next((run["trained"] for run in runs if run["trained"] is not None), None)


def _facts(result: Mapping[str, Any]) -> dict[str, Any]:
    train = result["train"]
    parameters = train.get("parameters") or {}
    return {
        "trained": parameters.get("trainable", train.get("trained_parameters")),
        "seconds": train.get("seconds") or train.get("total_seconds"),
        "data": _digest(result["data"].get("splits", {})),
    }


def _digest(splits: Mapping[str, Any]) -> str | None:
    """Of what a run reads of a data directory; None where nothing is known of it."""
    contents = [(name, splits[name]["sha256"]) for name in ("train", *SPLITS) if name in splits]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:16] if contents else None
