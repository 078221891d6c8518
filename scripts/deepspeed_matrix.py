"""What works under DeepSpeed, tried: every ZeRO stage, with and without 4 bits, on one process and on two.

    python scripts/deepspeed_matrix.py            the whole table, into docs/deepspeed.md (under 30 minutes on CPU)
    python scripts/deepspeed_matrix.py --cells zero3-nf4-1,zero2-none-2 --output table.json

Each cell is a run of a tiny model that is made whole, then killed, gone on with, and gone on with by the other number
of processes. Dropout and BatchNorm are off: they would see the number of processes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

from deepmlf_llm.files import write_aside
from deepmlf_llm.markdown import table
from deepmlf_llm.training.checkpoints import all_checkpoints, flaw, newest_whole, step_of
from deepmlf_llm.training.metrics_log import read_metrics
from tests.training import forked
from tests.training.run_state import run_state, unequal

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "deepspeed.md"
ENGINES = ("zero1", "zero1_offload", "zero2", "zero2_offload", "zero3", "zero3_offload")
QUANTIZATION = ("none", "nf4")
PROCESSES = (1, 2)
BEGIN, END = "<!-- the matrix, by scripts/deepspeed_matrix.py -->", "<!-- end of the matrix -->"
KILL_AT = 4


class Cell:
    """One row of the table.

    Args:
        name: ``zero2-nf4-1``: engine, quantization, processes.
        folder: to work in.
        data: directory of prepared data.
    """

    def __init__(self, name: str, folder: Path, data: Path) -> None:
        self.name = name
        engine, self.quantization, processes = name.split("-")
        self.engine, self.processes = engine, int(processes)
        self.folder = folder / name
        ds = REPOSITORY / "ds_configs" / f"{engine}.json"
        self.settings = {**forked.TRIAL, "data": data, "deepspeed": ds, "quantization": self.quantization}

    def row(self) -> dict[str, Any]:
        """What was found, a word for each column; the cell stops at the first that fails."""
        found: dict[str, Any] = {"cell": self.name}
        steps = {"save": self._save, "kill": self._kill, "resume": self._resume, "other": self._other}
        for column, step in steps.items():
            try:
                found[column] = step()
            except AssertionError as error:
                found[column], found["failed"] = "FAILED", f"{column}: {error}"
                break
        shutil.rmtree(self.folder, ignore_errors=True)
        return found

    def _start(self, run: str, processes: int, *words: str) -> forked.Ended:
        return forked.run({**self.settings, "output_dir": self.folder / run}, processes, words)

    def _save(self) -> str:
        ended = self._start("whole", self.processes)
        assert ended.good, _last(ended)
        broken = [path.name for path in all_checkpoints(self.folder / "whole") if flaw(path) is not None]
        assert not broken, f"{broken} are not whole"
        return "whole"

    def _kill(self) -> str:
        ended = self._start("cut", self.processes, "--simulate_fault", f"kill:rank{self.processes - 1}:step{KILL_AT}")
        assert ended.codes[-1] == -9, _last(ended)
        newest, _ = newest_whole(self.folder / "cut")
        assert newest is not None, "no whole checkpoint is left"
        assert step_of(newest) == 2, newest.name
        shutil.copytree(self.folder / "cut", self.folder / "moved")
        if self.processes == 1:
            return "whole until step 2"
        late = max(ended.seconds) - ended.seconds[-1]
        assert ended.codes[0] == 75, f"the other one ended with {ended.codes[0]}"
        assert late < 30, f"the other one ended after {late:.0f} s"
        return f"the other ends with 75 after {late:.0f} s"

    def _resume(self) -> str:
        ended = self._start("cut", self.processes)
        assert ended.good, _last(ended)
        differ = unequal(run_state(self.folder / "cut"), run_state(self.folder / "whole"))
        assert not differ, f"{', '.join(differ)} differ from the uncut run's"
        return "equal to the bit"

    def _other(self) -> str:
        ended = self._start("moved", 3 - self.processes)
        assert ended.good, _last(ended)
        assert "going on from checkpoint-2" in ended.output[0]
        logs = [read_metrics(self.folder / run / "metrics.jsonl") for run in ("whole", "moved")]
        losses = [[line["loss"] for line in log if line["kind"] == "train"] for log in logs]
        assert len(losses[0]) == len(losses[1]) == forked.TRIAL["max_steps"]
        apart = max(abs(one - other) for one, other in zip(*losses, strict=True))
        assert apart < 1e-3, f"losses are apart by {apart:.1e}"
        return f"losses within {apart:.0e}"


def _last(ended: forked.Ended) -> str:
    lines = [line for output in ended.output for line in output.splitlines() if line.strip()]
    return f"codes {ended.codes}: {lines[-1] if lines else ''}"


def matrix(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    head = ["ZeRO", "4 bits", "processes", "save", "killed", "resumed", "resumed with the other number"]
    columns = ("save", "kill", "resume", "other")
    return table(head, [[*row["cell"].split("-"), *(row.get(c, "not tried") for c in columns)] for row in rows])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [f"{e}-{q}-{n}" for e in ENGINES for q in QUANTIZATION for n in PROCESSES]
    parser.add_argument("--cells", default=",".join(every), help="default: all of them")
    parser.add_argument("--output", type=Path, help="JSON of the rows; the page is left as it is then")
    options = parser.parse_args(argv)
    forked.import_all()
    began, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        data = forked.prepared(Path(folder) / "data")
        for name in options.cells.split(","):
            rows.append(Cell(name, Path(folder), data).row())
            print(json.dumps(rows[-1]), flush=True)
    told = f"{len(rows)} cells in {(time.monotonic() - began) / 60:.0f} minutes.\n"
    if options.output is not None:
        write_aside(options.output, json.dumps(rows, indent=1) + "\n")
    else:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        write_aside(PAGE, f"{before}{BEGIN}\n\n{matrix(rows)}\n\n{told}\n{END}{after}")
    return int(any("failed" in row for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
