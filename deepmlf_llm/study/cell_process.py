"""One cell at work: its command, its environment, its log, how far it is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import deepmlf_llm
from deepmlf_llm.cores import usable_cores
from deepmlf_llm.files import make_directory, write_aside, writing
from deepmlf_llm.study import guard
from deepmlf_llm.study.baseline_cells import baseline_words
from deepmlf_llm.study.cells import PlannedCell
from deepmlf_llm.study.claims import Claim
from deepmlf_llm.study.grid import BASELINE
from deepmlf_llm.study.results import CONFIG, LOG, RUN
from deepmlf_llm.training.launch import free_port
from deepmlf_llm.training.metrics_log import METRICS_FILE, read_metrics
from deepmlf_llm.training.run_directory import FACTS

ATTEMPTS = "attempts.txt"
_PACKAGE = Path(deepmlf_llm.__file__).resolve().parent


@dataclass(frozen=True)
class Slot:
    """A place for one cell: its number, its GPUs (none on CPU), threads for each process."""

    number: int
    gpus: Sequence[int] = ()
    threads: int = 1


def make_slots(count: int, processes: int) -> list[Slot]:
    """``count`` slots that share this machine: GPUs dealt out in turn, else the cores."""
    import torch

    threads = max(1, usable_cores() // (count * processes))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    dealt = [[(slot * processes + rank) % gpus for rank in range(processes)] if gpus else [] for slot in range(count)]
    return [Slot(number, sorted(set(mine)), threads) for number, mine in enumerate(dealt)]


class CellProcess:
    """A cell's process, started at once.

    Args:
        cell: as planned.
        folder: of the cell; made where it is missing.
        slot: where it runs.
        recipe: the training recipe.
        claim: on the folder; while it is held and the node's heartbeat is written, the cell may work.
    """

    def __init__(self, cell: PlannedCell, folder: Path, slot: Slot, recipe: Path, claim: Claim) -> None:
        self.cell, self.folder, self.slot, self.claim = cell, folder, slot, claim
        make_directory(folder)
        write_aside(folder / CONFIG, settings_yaml(cell.settings))
        self.attempts = _count_attempt(folder)
        remove_unstarted_run(folder / RUN)
        self.began = time.monotonic()
        self._length, self._step = -1, 0
        within = [guard.WITHIN, str(claim.node.within)]
        with writing(folder / LOG), (folder / LOG).open("ab") as log:
            log.write(f"---- start {self.attempts}\n".encode())
            log.flush()
            self.process = subprocess.Popen(
                [sys.executable, guard.__file__, *within, *command(cell, folder, slot, recipe)],
                bufsize=0,
                stdin=subprocess.PIPE,  # closes when this process ends, however it ends; the guard then ends the cell
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(slot),
            )
        try:
            claim.name_worker(self.process.pid)  # before anything is started
            self.pulse()
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        claim.node.pulses.append(self.pulse)

    def pulse(self) -> None:
        """Lets the cell go on; without it the guard ends it. One that another node has by now is told to end."""
        assert self.process.stdin is not None
        with suppress(OSError, ValueError):  # it has ended
            if self.claim.is_held():
                self.process.stdin.write(b".")
            else:
                self.process.terminate()

    def poll(self) -> int | None:
        """Exit code, 128 + n for signal n; None while it runs."""
        return self.process.poll()

    @property
    def log_size(self) -> int:
        return (self.folder / LOG).stat().st_size

    def step(self) -> int:
        """Optimizer steps done, by the run's own log."""
        path = self.folder / RUN / METRICS_FILE
        length = path.stat().st_size if path.is_file() else -1
        if length != self._length:
            self._length = length
            self._step = max((line.get("step", 0) for line in read_metrics(path)), default=0)
        return self._step

    def has_read_its_texts(self) -> bool:
        """Whether training has begun, and so every text stands in the cache."""
        return (self.folder / RUN / METRICS_FILE).is_file()

    def close(self) -> None:
        """Of one that has ended: no pulse is sent any more."""
        with suppress(ValueError):
            self.claim.node.pulses.remove(self.pulse)
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()

    def ask_to_end(self) -> None:
        self.process.terminate()

    def wait(self) -> None:
        """Returns when no process of the cell is left."""
        try:
            self.process.wait(guard.GRACE + 10)
        except subprocess.TimeoutExpired:  # the guard kills after its grace; a process in the kernel may take longer
            self.process.kill()
            self.process.wait()


def settings_yaml(settings: Mapping[str, Any]) -> str:
    """A cell's settings as a file for the training recipe's ``--config``."""
    nested: dict[str, Any] = {}
    for path, value in settings.items():
        section, dot, name = path.partition(".")
        if dot:
            nested.setdefault(section, {})[name] = value
        else:
            nested[path] = value
    return yaml.safe_dump(nested, sort_keys=False, allow_unicode=True)


def command(cell: PlannedCell, folder: Path, slot: Slot, recipe: Path) -> list[str]:
    """The training recipe with the cell's settings, under the deepspeed launcher where it has more than one process; or
    the recipe of baselines, which lies beside it."""
    if BASELINE in cell.settings:
        words = baseline_words(cell.settings, folder / RUN)
        return [sys.executable, *words_of(recipe.with_name("baseline.py"), "-m"), *words]
    options = ["--config", str(folder / CONFIG), "--output_dir", str(folder / RUN)]
    if "report_to" not in cell.settings:
        options += ["--report_to", "none"]  # the study has its own report
    if cell.processes == 1:
        return [sys.executable, *words_of(recipe, "-m"), *options]
    run = [*words_of(recipe, "--module"), *options]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    launcher = [shutil.which("deepspeed", path=path) or "deepspeed", "--master_port", str(free_port())]
    if slot.gpus:
        return [*launcher, "--include", "localhost:" + ",".join(map(str, slot.gpus)), *run]
    return [*launcher, "--num_accelerators", str(cell.processes), *run]


def words_of(recipe: Path, module_option: str) -> list[str]:
    """A recipe on a command line: one of this package by its module, any other as a script."""
    if not recipe.is_relative_to(_PACKAGE):
        return [str(recipe)]
    return [module_option, ".".join(recipe.relative_to(_PACKAGE.parent).with_suffix("").parts)]


def environment(slot: Slot) -> dict[str, str]:
    """This process' own, with the slot's share of the machine, and with this very package first."""
    given = {"OMP_NUM_THREADS": str(slot.threads), **os.environ, "PYTHONUNBUFFERED": "1"}
    given["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_PACKAGE.parent), os.environ.get("PYTHONPATH", "")]))
    # The launcher names GPUs by their numbers on the machine; a process of its own sees only the slot's, which counts
    # among those that this process sees.
    if len(slot.gpus) == 1:
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        number = slot.gpus[0]
        given["CUDA_VISIBLE_DEVICES"] = visible[number] if number < len(visible) else str(number)
    return given


def remove_unstarted_run(run: Path) -> None:
    """Removes a run that was cut before it had a name: the training recipe would take it for something foreign."""
    if run.is_dir() and not (run / FACTS).is_file():
        shutil.rmtree(run)


def _count_attempt(folder: Path) -> int:
    path = folder / ATTEMPTS
    before = int(path.read_text()) if path.is_file() else 0
    write_aside(path, f"{before + 1}\n")
    return before + 1


def default_slots(processes: int, most: int | None = None) -> int:
    """As many cells as the GPUs carry; on CPU one a core, at most 4.

    Args:
        processes: of a cell.
        most: cells that the GPUs hold, where their memory is known; they share the cores too.
    """
    import torch

    if torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        return max(1, gpus // processes) if most is None else max(gpus, min(most, usable_cores()))
    return max(1, min(4, usable_cores() // processes))
