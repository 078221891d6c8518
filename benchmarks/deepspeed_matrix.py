"""What works under DeepSpeed, tried: every ZeRO stage, with and without 4 bits, on one process and on two.

    python benchmarks/deepspeed_matrix.py            the whole table, into docs/deepspeed.md (under 30 minutes on CPU)
    python benchmarks/deepspeed_matrix.py --cells zero3-nf4-1,zero2-none-2 --output table.json

Each cell is a run of a tiny model that is made whole, then killed, gone on with, and gone on with by the other number
of processes. Dropout and BatchNorm are off: they would see the number of processes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import forked
from run_state import run_state, unequal

from deepmlf_llm.files import write_aside
from deepmlf_llm.training.checkpoints import all_checkpoints, flaw, newest_whole, step_of
from deepmlf_llm.training.metrics_log import read_metrics

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "deepspeed.md"
ENGINES = ("zero1", "zero1_offload", "zero2", "zero2_offload", "zero3", "zero3_offload")
QUANTIZATION = ("none", "nf4")
PROCESSES = (1, 2)
BEGIN, END = "<!-- the matrix, by benchmarks/deepspeed_matrix.py -->", "<!-- end of the matrix -->"
SETTINGS = {
    **{"base_model": "tiny-llama", "batch_size": 8, "max_steps": 4, "fusion_layers": "last:1", "num_fusion_tokens": 2},
    **{"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "logging_steps": 1},
    **{"report_to": "none", "save_total_limit": "null", "warmup_steps": 0, "av_encoder.num_layers": 1},
    **{"head_norm": "layer", "av_encoder.dropout": 0, "ffw_scope": "joint", "num_layers": 2},
}
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
        self.settings = {**SETTINGS, "data": data, "deepspeed": ds, "quantization": self.quantization}

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
        command = forked.words_of({**self.settings, "output_dir": self.folder / run})
        return forked.run([*command, *words], processes)

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
        assert len(losses[0]) == len(losses[1]) == SETTINGS["max_steps"]
        apart = max(abs(one - other) for one, other in zip(*losses, strict=True))
        assert apart < 1e-3, f"losses are apart by {apart:.1e}"
        return f"losses within {apart:.0e}"


def _last(ended: forked.Ended) -> str:
    lines = [line for output in ended.output for line in output.splitlines() if line.strip()]
    return f"codes {ended.codes}: {lines[-1] if lines else ''}"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    head = ["ZeRO", "4 bits", "processes", "save", "killed", "resumed", "resumed with the other number"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        engine, quantization, processes = row["cell"].split("-")
        columns = [row.get(name, "not tried") for name in ("save", "kill", "resume", "other")]
        lines.append("| " + " | ".join([engine, quantization, processes, *columns]) + " |")
    return "\n".join(lines) + "\n"


def prepared(folder: Path) -> Path:
    """A small embedded set, made in a process of its own, so that no thread is left in this one."""
    pid = os.fork()
    if not pid:
        from deepmlf_llm.data.demo import embedded_dataset

        embedded_dataset(folder, sizes=(32, 8, 8))
        os._exit(0)
    os.waitpid(pid, 0)
    return next(folder.rglob("manifest.json")).parent


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [f"{e}-{q}-{n}" for e in ENGINES for q in QUANTIZATION for n in PROCESSES]
    parser.add_argument("--cells", default=",".join(every), help="default: all of them")
    parser.add_argument("--output", type=Path, help="JSON of the rows; the page is left as it is then")
    options = parser.parse_args(argv)
    forked.import_all()
    began, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        data = prepared(Path(folder) / "data")
        for name in options.cells.split(","):
            rows.append(Cell(name, Path(folder), data).row())
            print(json.dumps(rows[-1]), flush=True)
    told = f"{len(rows)} cells in {(time.monotonic() - began) / 60:.0f} minutes.\n"
    if options.output is not None:
        options.output.write_text(json.dumps(rows, indent=1) + "\n")
    else:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        write_aside(PAGE, f"{before}{BEGIN}\n\n{table(rows)}\n{told}\n{END}{after}")
    return int(any("failed" in row for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
