"""A program of :mod:`tests.training.test_world`: one run, and what becomes of it in other worlds. Prints JSON.

python worlds.py FOLDER CASES    CASES: JSON, name -> {"from": [name, step], "processes": n, "settings": {...}}

With ``"opposite": true`` each process lacks one modality, in all of its rows, and another process another one.
"""

from __future__ import annotations

import gc
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from deepmlf_llm.training import scores
from tests.training import forked


def cut(source: Path, copy: Path, step: int) -> None:
    """A run as it was when it had just written the checkpoint of ``step``."""
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("adapter", "result.json"))
    for later in copy.glob("checkpoint-*"):
        if int(later.name.rpartition("-")[2]) > step:
            shutil.rmtree(later)


def opposite(words: Sequence[str]) -> None:
    """In the place of ``deepmlf train``."""
    from deepmlf_llm.training.command_line import parse_settings
    from deepmlf_llm.training.data import TrainingData
    from deepmlf_llm.training.launch import detect
    from deepmlf_llm.training.run import run_training
    from tests.training.conftest import DIMS, Utterances

    lacking = list(DIMS)[detect().rank]
    sizes = {"train": 16, "valid": 6, "test": 6}
    parts = {name: Utterances(size, seed=0, absent=lambda i: (lacking,)) for name, size in sizes.items()}
    modalities = {name: {"dim": dim} for name, dim in DIMS.items()}
    run_training(parse_settings(list(words)), TrainingData(**parts, modalities=modalities, fingerprint="toy"))


def main(folder: Path, cases: dict[str, Any]) -> None:
    forked.import_all()
    scores.write_plots = lambda *_: None  # a second of each run
    gc.collect()
    gc.freeze()  # nor has the collector, which the Trainer calls, to look at all that is imported
    train, found = forked.train, {}
    for name, case in cases.items():
        if "from" in case:
            source, step = case["from"]
            if not (folder / source).is_dir():
                raise SystemExit(f"{source} has not run: {found[source]}")
            cut(folder / source, folder / name, step)
        settings = {**case["settings"], "output_dir": folder / name}
        forked.train = SimpleNamespace(main=opposite) if case.get("opposite") else train
        ended = forked.run(settings, case["processes"], case.get("words", ()), **case.get("how", {}))
        found[name] = {"codes": ended.codes, "output": ended.output, "seconds": ended.seconds}
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
