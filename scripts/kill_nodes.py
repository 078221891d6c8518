"""Kills one of two nodes of a study again and again, and compares its table with that of a study that nobody touched.

    python scripts/kill_nodes.py --kills 10 --seed 0

Real cells of a random toy, on this machine. One node stays; the other is killed (SIGKILL, its whole process group) at a
random instant after its start, and started again, until it was killed so often. What is compared: every cell's record
but for times and machines, and the bytes of every adapter. Ends with code 0 if all is equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from deepmlf_llm.data.demo import embedded_dataset  # noqa: E402
from deepmlf_llm.errors import RunError  # noqa: E402

SIZES = (48, 16, 16)  # utterances of the three splits
GRID: dict[str, Any] = {
    "name": "killed",
    "fixed": {"text_cache": "disk", "ffw_scope": "fusion", "batch_size": 8, "learning_rate": 0.01, "max_steps": 24}
    | {"eval_strategy": "steps", "eval_steps": 8, "save_strategy": "steps", "save_steps": 2, "logging_steps": 1},
    "grid": [{"backbone": "tiny-llama", "fusion_layers": ["even:1", "even:2"], "num_fusion_tokens": [2, 4]}],
}


def cells_of(seeds: int) -> int:
    """Cells of the study with so many seeds."""
    return seeds * math.prod(len(values) for values in GRID["grid"][0].values() if isinstance(values, list))


def study_table(folder: Path) -> dict[str, tuple[object, str]]:
    """All that a study says of its cells, but for times and machines, and a hash of each adapter: cell -> both."""
    found = {}
    for path in sorted(folder.glob("cells/*/cell.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        del record["run_info"]["attempts"], record["meta_info"]
        for name in ("seconds", "total_seconds", "peak_memory_mb"):
            del record["train_info"][name]
        for line in record["train_info"]["curve"]:
            for name in [name for name in line if name.endswith(("runtime", "per_second"))]:
                del line[name]
        weights = (path.parent / "run" / "adapter" / "adapter_model.safetensors").read_bytes()
        found[path.parent.name] = (record, hashlib.sha256(weights).hexdigest())
    return found


def start(*arguments: object, cache: Path) -> subprocess.Popen[str]:
    """``recipes/scale_study.py`` in a session, and so a process group, of its own."""
    command = [sys.executable, str(REPOSITORY / "recipes" / "scale_study.py"), *map(str, arguments)]
    environment = {**os.environ, "DEEPMLF_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str]) -> None:
    """Waits for its end.

    Raises:
        RunError: it did not end well; the message has what it printed.
    """
    output = process.communicate()[0]
    if process.returncode:
        raise RunError(f"{' '.join(map(str, process.args))} ended with code {process.returncode}:\n{output}")


def kill_nodes(folder: Path, kills: int, seed: int, seeds: int = 5, longest: float = 15.0) -> list[float]:
    """Runs the study untouched, then with one of two nodes killed, and compares.

    Args:
        folder: to work in, empty.
        kills: of the node that is killed.
        seed: of the instants.
        seeds: of the study: see :func:`cells_of`.
        longest: seconds that the node lives, at most.

    Returns:
        Seconds that each killed node lived.

    Raises:
        RunError: the other node failed, all cells were done before the last kill, or the tables differ.
    """
    data, grid = embedded_dataset(sizes=SIZES), folder / "grid.yaml"
    content = {**GRID, "fixed": {"data": str(data), **GRID["fixed"]}, "seeds": list(range(seeds))}
    grid.write_text(yaml.safe_dump(content), encoding="utf-8")
    finish(start("--grid", grid, "--output", folder / "whole", "--slots", 2, cache=folder / "cache-1"))
    expected, chance, lives = study_table(folder / "whole"), random.Random(seed), []
    if len(expected) != cells_of(seeds):
        raise RunError(f"the untouched study finished {len(expected)} of {cells_of(seeds)} cells")

    given = ("--grid", grid, "--output", folder / "killed", "--slots", 1, "--join")
    survivor = start(*given, cache=folder / "cache-2")
    try:
        while len(lives) < kills:
            victim, life = start(*given, cache=folder / "cache-2"), chance.uniform(1.0, longest)
            time.sleep(life)
            os.killpg(victim.pid, signal.SIGKILL)
            victim.communicate()
            lives.append(life)
            done = len(list((folder / "killed").glob("cells/*/cell.json")))
            print(f"kill {len(lives)}, after {life:.1f} s: {done} of {len(expected)} cells were done", flush=True)
            if done == len(expected):
                raise RunError(f"all cells were done by kill {len(lives)} of {kills}: give it more seeds")
        finish(survivor)
    finally:
        if survivor.poll() is None:
            os.killpg(survivor.pid, signal.SIGKILL)
    found = study_table(folder / "killed")
    unlike = [name for name in expected if found.get(name) != expected[name]]
    if unlike:
        raise RunError(f"{len(unlike)} of {len(expected)} cells differ from the untouched study's: {', '.join(unlike)}")
    return lives


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=5, help="of the study, four cells each")
    options = parser.parse_args(argv)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        lives = kill_nodes(Path(folder), options.kills, options.seed, options.seeds)
    cells, minutes = cells_of(options.seeds), (time.monotonic() - began) / 60
    print(f"{len(lives)} kills, {cells} cells: all equal to the untouched study's ({minutes:.0f} minutes)")


if __name__ == "__main__":
    main()
