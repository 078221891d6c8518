"""Runs that are killed again and again, and what becomes of them: none is lost, each ends as if nothing had happened.

    python benchmarks/soak.py --points 60 --minutes 60 --seed 0

It is bounded by both numbers, prints a table, and ends with code 0 if all is well. A point is one fault: SIGKILL at a
step, before a sync or rename, or at any moment; a full disk; a rename that the disk has lost; SIGTERM or SIGUSR1; a
newest checkpoint that is damaged afterwards. The same command follows each, up to the run's end, where its whole final
state (adapter, optimizer, random numbers, sampler, log, metrics) is compared with that of a run that nobody touched.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shutil
import signal
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
from deepmlf_llm.training.checkpoints import all_checkpoints, newest_whole
from tests.training import forked
from tests.training.run_state import run_state, unequal

WORLDS: dict[str, tuple[int, str | None]] = {
    "one process": (1, None),
    "two processes": (2, None),
    "two under ZeRO-2": (2, "zero2"),
    "two under ZeRO-3": (2, "zero3"),
}
STEPS = 8
OWN = {"max_steps": STEPS, "save_total_limit": 2, "av_encoder.dropout": 0.1, "head_norm": "batch"}
KINDS = ("step", "write", "rename", "full disk", "any moment", "signal", "damage")
WRITE_FAULTS = {"write": "kill", "rename": "lost_rename", "full disk": "full_disk"}
WRITES = 160  # about as many syncs and renames as such a run makes
IN_A_ROW = 4  # faults of one run; then it may end
GOOD_CODES = {0, -9, 75, 2, 143, 138, -15, -10, 1}  # signals may come before anybody listens


class Soak:
    """Faults, one after another, in runs of one world.

    Args:
        world: name of it.
        folder: to work in.
        data: directory of prepared data.
        chance: what draws the faults.
    """

    def __init__(self, world: str, folder: Path, data: Path, chance: random.Random) -> None:
        self.world, self.folder, self.chance = world, folder / world.replace(" ", "-"), chance
        self.processes, engine = WORLDS[world]
        self.settings: dict[str, Any] = {**forked.TRIAL, **OWN, "data": data}
        if engine is not None:
            self.settings["ds"] = engine
        began = time.monotonic()
        ended = self._start("whole")
        self.duration = time.monotonic() - began
        if not ended.good:
            raise SystemExit(f"{world}: the run that nobody touches fails: {ended.output}")
        self.expected = run_state(self.folder / "whole")
        self.runs = 0

    def _start(self, run: str, *words: str, **how: Any) -> forked.Ended:
        return forked.run({**self.settings, "output_dir": self.folder / run}, self.processes, words, **how)

    def run(self) -> tuple[list[dict[str, Any]], str | None]:
        """One run through several faults to its end: the faults, and what was wrong with it, if anything."""
        name = f"run-{self.runs}"
        self.runs += 1
        points: list[dict[str, Any]] = []
        for _ in range(self.chance.randint(1, IN_A_ROW)):
            if (self.folder / name / "result.json").exists():
                break
            point, ended = self._fault(name)
            points.append(point)
            if set(ended.codes) - GOOD_CODES:
                return points, f"codes {ended.codes}: {ended.output}"
        ended = self._start(name)
        if not ended.good:
            return points, f"LOST: codes {ended.codes}: {ended.output}"
        differ = unequal(run_state(self.folder / name), self.expected)
        shutil.rmtree(self.folder / name)
        return points, f"{', '.join(differ)} differ" if differ else None

    def _fault(self, name: str) -> tuple[dict[str, Any], forked.Ended]:
        kind, rank = self.chance.choice(KINDS), self.chance.randrange(self.processes)
        fault, send = [], None
        if kind == "step":
            fault = [f"kill:rank{rank}:step{self.chance.randint(1, STEPS)}"]
        elif kind in WRITE_FAULTS:
            fault = [f"{WRITE_FAULTS[kind]}:rank0:write{self.chance.randint(1, WRITES)}"]
        elif kind == "signal":
            number = self.chance.choice((signal.SIGTERM, signal.SIGUSR1))
            send = self.chance.uniform(0, self.duration), None, number
        else:
            begin = self.duration / 2 if kind == "damage" else 0  # there must be a checkpoint to damage
            send = self.chance.uniform(begin, self.duration), rank, signal.SIGKILL
        ended = self._start(name, *(["--simulate_fault", *fault] if fault else []), send=send)
        told = {"world": self.world, "kind": kind, "words": fault or str(send), "codes": ended.codes}
        told["happened"] = any(ended.codes)  # the run may have ended before it came
        if kind == "damage":
            told["damage"] = self._damage(self.folder / name)
        return told, ended

    def _damage(self, run: Path) -> str:
        """Of the newest whole checkpoint, where an older one is left to go on from."""
        newest, _ = newest_whole(run)
        if newest is None or (run / "result.json").exists() or len(all_checkpoints(run)) < 2:
            return "none"
        path = self.chance.choice(sorted(path for path in newest.iterdir() if path.is_file()))
        how = self.chance.choice(("flip", "cut", "remove"))
        if how == "remove":
            path.unlink()
        elif how == "cut":
            os.truncate(path, path.stat().st_size // 2)
        else:
            content = bytearray(path.read_bytes())
            content[self.chance.randrange(len(content))] ^= 1
            path.write_bytes(bytes(content))
        return f"{how} {path.name}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=60, help="faults, at least, unless the time is up")
    parser.add_argument("--minutes", type=float, default=60.0, help="at most, but for the run that is under way")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worlds", default=",".join(WORLDS), help=f"of {', '.join(WORLDS)}")
    parser.add_argument("--output", type=Path, help="JSON of all points")
    options = parser.parse_args(argv)
    forked.import_all()
    end, chance = time.monotonic() + 60 * options.minutes, random.Random(options.seed)
    points: list[dict[str, Any]] = []
    wrong: list[str] = []
    runs = 0
    with tempfile.TemporaryDirectory() as folder:
        data = forked.prepared(Path(folder) / "data")
        soaks = [Soak(world, Path(folder), data, chance) for world in options.worlds.split(",")]
        while len(points) < options.points and time.monotonic() < end:
            found, problem = soaks[runs % len(soaks)].run()
            runs += 1
            points += [point for point in found if point["happened"]]
            wrong += [] if problem is None else [problem]
            print(json.dumps({"points": found, "problem": problem}), flush=True)
    counts = collections.Counter((point["world"], point["kind"]) for point in points)
    rows = [[world, *(counts[world, kind] for kind in KINDS)] for world in options.worlds.split(",")]
    print(f"\n{table(['faults', *KINDS], rows)}")
    lost = sum(problem.startswith("LOST") for problem in wrong)
    print(f"\n{len(points)} faults in {runs} runs: {lost} lost, {len(wrong) - lost} otherwise wrong.")
    if options.output is not None:
        write_aside(options.output, json.dumps({"points": points, "wrong": wrong, "runs": runs}, indent=1) + "\n")
    return int(bool(wrong) or len(points) < options.points)


if __name__ == "__main__":
    raise SystemExit(main())
