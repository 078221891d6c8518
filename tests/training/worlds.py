"""A program of :mod:`tests.training.test_world`: one run, and what becomes of it in other worlds. Prints JSON.

python worlds.py FOLDER CASES    CASES: JSON, name -> {"from": [name, step], "processes": n, "settings": {...}}
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import forked


def cut(source: Path, copy: Path, step: int) -> None:
    """A run as it was when it had just written the checkpoint of ``step``."""
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("adapter", "result.json"))
    for later in copy.glob("checkpoint-*"):
        if int(later.name.rpartition("-")[2]) > step:
            shutil.rmtree(later)


def main(folder: Path, cases: dict[str, Any]) -> None:
    forked.import_all()
    found = {}
    for name, case in cases.items():
        if "from" in case:
            source, step = case["from"]
            cut(folder / source, folder / name, step)
        words = forked.words_of({**case["settings"], "output_dir": folder / name}) + case.get("words", [])
        ended = forked.run(words, case["processes"], **case.get("how", {}))
        found[name] = {"codes": ended.codes, "output": ended.output, "seconds": ended.seconds, "cpu": ended.cpu}
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
