"""Cells that are finished in another folder of a study, one that was put away too, count as finished in this one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepmlf_llm.errors import ConfigError
from deepmlf_llm.paths import shown
from deepmlf_llm.study.cells import Plan
from deepmlf_llm.study.claims import take, turn
from deepmlf_llm.study.directory import StudyDirectory
from deepmlf_llm.study.node import NODES, REPORT, Node
from deepmlf_llm.study.perplexity import read_measured, what_was_read, write_measured
from deepmlf_llm.study.results import RUN, is_finished, read_record, records_there, write_record
from deepmlf_llm.training.checkpoints import drop_checkpoints


@dataclass(frozen=True)
class Elsewhere:
    """What another folder has of a plan.

    Args:
        records: by fingerprint, of the plan's cells that are finished there.
        measured: how well base models read, as stored there.
    """

    records: Mapping[str, dict[str, Any]]
    measured: list[dict[str, Any]]

    @classmethod
    def of(cls, source: StudyDirectory, plan: Plan) -> Elsewhere:
        """Looks there; writes nothing.

        Raises:
            RunError: no study there, or it cannot be read.
            ConfigError: none of the plan's cells is finished there.
        """
        source.read()
        there = {mark: record for mark, record in records_there(source).items() if is_finished(record)}
        found = {cell.fingerprint: there[cell.fingerprint] for cell in plan.cells if cell.fingerprint in there}
        if not found:
            codes = sorted({record["run_info"]["code"] for record in there.values()} - {plan.code})
            other = f"; they are of code version {', '.join(codes)}, this is {plan.code}" if codes else ""
            raise ConfigError(
                f"--finished {shown(source.path)}: {len(there)} cells are finished there, and none of them is of this "
                f"grid, data and code version{other}"
            )
        return cls(found, read_measured(source))

    def take_in(self, node: Node, directory: StudyDirectory, plan: Plan) -> None:
        """Writes into ``directory`` what is not finished there, as if it had been run; what a node works on is its own.

        Args:
            node: this process.
            directory: of the plan.
            plan: the cells.

        Raises:
            FileError: nothing can be written there.
        """
        for cell in plan.cells:
            folder, found = directory.cell(cell.name), self.records.get(cell.fingerprint)
            if found is None or is_finished(read_record(folder, cell.fingerprint)):
                continue
            claim = take(node, folder)
            if claim is None:
                continue
            if not is_finished(read_record(folder, cell.fingerprint)):  # it may have ended just before
                write_record(folder, found)
                drop_checkpoints(folder / RUN)
            claim.release()
        with turn(node, directory.path / NODES / REPORT):
            known = read_measured(directory)
            ours = [what_was_read(entry) for entry in known]
            new = [entry for entry in self.measured if what_was_read(entry) not in ours]
            if new:
                write_measured(directory, [*known, *new])
