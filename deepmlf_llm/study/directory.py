"""The folder of a study: whose it is, where each cell lies, and who may work in it.

``study.json`` (the cells and the code version of the last start), ``cells/NAME/`` (``config.yaml``, ``log.txt``,
``cell.json`` once ended, ``run/`` as the training recipe leaves it, ``claim-N.json``: whose it is), ``nodes/`` (a
heartbeat of each process at work), ``results.parquet``, ``report.md`` with ``plots/``, ``report.html``, ``report.tex``,
``summary.html``. Every file is written aside and renamed.

One process at a time works there, unless the others say that they join it. A study may be put away without ``cells/``:
the Parquet then stands for them, and is read, never written.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepmlf_llm.errors import RunError
from deepmlf_llm.files import make_directory, write_aside, writing
from deepmlf_llm.paths import shown
from deepmlf_llm.reading import read_json
from deepmlf_llm.study.cells import Plan, PlannedCell
from deepmlf_llm.study.node import NODES, Node

SCHEMA = 1
STUDY, CELLS, PARQUET, LOCK = "study.json", "cells", "results.parquet", ".lock"
_OURS = re.compile(rf"{re.escape(LOCK)}|\.{re.escape(STUDY)}\.partial|{NODES}")


class StudyDirectory:
    """A study's files at ``path``, which need not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def cell(self, name: str) -> Path:
        return self.path / CELLS / name

    @property
    def put_away(self) -> bool:
        """Whether the Parquet is all that there is of the cells."""
        return (self.path / PARQUET).is_file() and not (self.path / CELLS).is_dir()

    def check_results(self) -> None:
        """Refuses a study of whose cells nothing is there; one whose cells have not ended yet has their folders.

        Raises:
            RunError: no study there, or neither ``cells/`` nor the Parquet.
        """
        self.read()
        if not (self.path / CELLS).is_dir() and not (self.path / PARQUET).is_file():
            raise RunError(
                f"{shown(self.path)}: neither {CELLS}/ nor {PARQUET} is there: no cell has begun, or {STUDY} was kept "
                "without the results; put one of them back"
            )

    def check(self, name: str) -> None:
        """Refuses a place that is not this study's; writes nothing.

        Raises:
            RunError: a file, something else's folder, another study's, or a study that was put away.
        """
        where = f"--output {shown(self.path)}"
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise RunError(f"{where}: is a file")
        if not (self.path / STUDY).is_file():
            if any(not _OURS.fullmatch(entry.name) for entry in self.path.iterdir()):
                raise RunError(f"{where}: holds something that is not a study; choose another folder")
            return
        stored = self.read()["name"]
        if stored != name:
            raise RunError(
                f"{where}: belongs to the study {stored!r}, and this grid is {name!r}; choose another folder"
            )
        if self.put_away:
            raise RunError(
                f"{where}: a study that was put away, its cells are in {PARQUET} alone; `deepmlf study report` and "
                f"`compare` read it, to run more choose another folder and give --finished {shown(self.path)}"
            )

    def read(self) -> dict[str, Any]:
        """What the last start wrote.

        Raises:
            RunError: no study here, or a damaged or newer ``study.json``.
        """
        path = self.path / STUDY
        try:
            study: dict[str, Any] = read_json(path)
            schema = study["schema"]
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(f"{shown(self.path)}: no study there (no {STUDY})") from None
        except (OSError, ValueError, KeyError, TypeError):
            raise RunError(f"{shown(path)}: damaged; start the study again with its --grid to write it again") from None
        if schema != SCHEMA:
            raise RunError(f"{shown(path)}: layout version {schema}, this package reads {SCHEMA}")
        return study

    def write(self, plan: Plan) -> None:
        """Records what this start is about to run."""
        write_aside(self.path / STUDY, _content(plan))

    def begin(self, plan: Plan, node: Node, helped: bool = False, say: Callable[[str], None] | None = None) -> None:
        """As :meth:`write`, unless nodes work there: their cells would no longer be of the study.

        Args:
            plan: what is about to run.
            node: this process.
            helped: nodes of the same plan may be at work, for this start only adds to them.
            say: gets a line where it takes time to know.

        Raises:
            RunError: a node is at work there.
        """
        differ = self._differ(plan)
        if differ or not helped:
            other = node.at_work(say)
            if other is not None:
                where = f"--output {shown(self.path)}: node {other} works there"
                if not differ:
                    raise RunError(f"{where}; add --join to help it, or wait until it has ended")
                raise RunError(
                    f"{where} on other {' and '.join(differ)} than grid, data and checkout give here; wait until it "
                    f"has ended, or make them the same{'' if helped else ' and add --join'}"
                )
        self.write(plan)

    def join(self, plan: Plan, node: str) -> None:
        """Takes part in what another start runs there; the first one to join records it.

        Args:
            plan: what this process would run.
            node: its name.

        Raises:
            RunError: it is not the same.
        """
        make_directory(self.path / NODES)
        if not (self.path / STUDY).is_file():
            own = self.path / NODES / f"{node}.{STUDY}"  # several may do so at once, each with the same words
            write_aside(own, _content(plan))
            with writing(self.path / STUDY):
                os.replace(own, self.path / STUDY)
        differ = self._differ(plan)
        if differ:
            raise RunError(
                f"--join: the study in {shown(self.path)} does not have the {' and '.join(differ)} that grid, "
                "data and checkout give here; make them the same, or start it once without --join"
            )

    def _differ(self, plan: Plan) -> list[str]:
        """What the last start has otherwise than ``plan``; all of it where there was none."""
        kinds = (("code version", "code"), ("cells", "cells"))
        if not (self.path / STUDY).is_file():
            return [what for what, _ in kinds]
        stored, mine = self.read(), json.loads(_content(plan))
        return [what for what, key in kinds if _identity(stored.get(key)) != _identity(mine[key])]

    def planned(self) -> list[PlannedCell]:
        """The cells of the last start, in the grid's order.

        Raises:
            RunError: as :meth:`read`, or another version of this package wrote them.
        """
        try:
            return [PlannedCell(**cell) for cell in self.read()["cells"]]
        except (KeyError, TypeError):
            raise RunError(f"{shown(self.path / STUDY)}: its cells are not as this version writes them") from None

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Holds the folder for this process; free again at its end, however it ends.

        Raises:
            RunError: another study process is at work there.
            FileError: the folder cannot be made.
        """
        from filelock import FileLock, Timeout

        make_directory(self.path)
        lock = FileLock(str(self.path / LOCK), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise RunError(
                f"--output {shown(self.path)}: another process runs the study there (--join helps it)"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def others(self, names: set[str]) -> int:
        """How many ended cells lie here that are none of ``names``: of an earlier grid, data or code version."""
        folders = (self.path / CELLS).glob("*/cell.json")
        return sum(path.parent.name not in names for path in folders)


def _content(plan: Plan) -> str:
    content = {
        "schema": SCHEMA,
        "name": plan.grid.name,
        "title": plan.grid.title,
        "metric": plan.grid.metric,
        "fixed": plan.grid.fixed,
        "code": plan.code,
        "excluded": plan.excluded,
        "notes": plan.notes,
        "cells": [cell.to_dict() for cell in plan.cells],
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _identity(value: Any) -> Any:
    """Of cells their names and fingerprints; what another version wrote without them is the same as nothing of ours."""
    if not isinstance(value, list):
        return value
    return [(cell.get("name"), cell.get("fingerprint")) if isinstance(cell, dict) else None for cell in value]
