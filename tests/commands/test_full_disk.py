"""Every command on a disk that takes no more: one line, exit code 2, nothing half-written, nothing lost.

The limit of a process on the size of its files stands for the disk: the refusal is the system's own, whichever library
writes, in whichever language.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepmlf_llm.data.storage import STORAGES

pytestmark = pytest.mark.timeout(600)  # all commands in one process, for the first test: a minute on a quiet core
SCRIPT = """
    import contextlib, io, json, resource, sys
    from deepmlf_llm.commands.cli import main

    def run(words, limit=None):
        said = io.StringIO()
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            try:
                code = main(words)
            except SystemExit as end:
                code = end.code
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return [code, said.getvalue()]

    print(json.dumps([run(*call) for call in json.loads(sys.argv[1])]))
"""


def run_all(place: Path, calls: list[Any]) -> list[Any]:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), json.dumps(calls)],
        cwd=place, capture_output=True, text=True, timeout=560, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def source(place: Path) -> None:
    rng = np.random.default_rng(0)
    tree = {
        split: {
            "id": [f"{split}{row}" for row in range(rows)],
            "raw_text": [f"it was number {row}" for row in range(rows)],
            "regression_labels": rng.uniform(-3, 3, rows).astype(np.float32),
            "audio": rng.normal(size=(rows, 4, 40)).astype(np.float32),
            "audio_lengths": [4] * rows,
        }
        for split, rows in (("train", 8), ("valid", 8), ("test", 8))
    }
    (place / "source.pkl").write_bytes(pickle.dumps(tree))
    row = {"id": "a", "text": "good", "audio": [[0.1] * 40] * 3}
    (place / "clips.jsonl").write_text(json.dumps(row) + "\n")
    grid = {"name": "g", "grid": [{"backbone": "tiny-llama"}], "seeds": [0], "fixed": {"fusion_layers": "last:1"}}
    (place / "grid.yaml").write_text(json.dumps({**grid, "fixed": {**grid["fixed"], "data": "data"}}))


TRAIN = ["train", "--data", "data", "--base_model", "tiny-llama", "--fusion_layers", "last:1", "--max_steps", "2"]
TRAIN += ["--batch_size", "8", "--save_strategy", "steps", "--save_steps", "1", "--eval_strategy", "steps"]
TRAIN += ["--eval_steps", "1", "--report_to", "none", "--save_total_limit", "9", "--output_dir"]
PREPARE = ["prepare", "--source", "source.pkl", "--dataset", "mosi", "--storage"]
AGAIN = ["--adapter", "run/adapter"]


WRONG = ["clips.jsonl/x", "n" * 300, "full", "loop/loop/x", "/dev/full"]


def writes_to(where: str) -> list[list[str]]:
    """Every command, told to write to a place where it cannot."""
    return [
        [*PREPARE, "numpy", "--out", where],
        [*TRAIN, where],
        ["evaluate", *AGAIN, "--data", "data", "--split", "test", "--output", where],
        ["predict", *AGAIN, "--input", "clips.jsonl", "--output", where],
        ["merge", *AGAIN, "--output", where],
        ["study", "--grid", "grid.yaml", "--output", where],
        ["configs", "zero2", "--copy", where],
    ]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each command said on the full disk, and the names in its directory afterwards."""
    place = tmp_path_factory.mktemp("full")
    source(place)
    (place / "full").mkdir()
    (place / "full" / "file").write_text("kept")
    (place / "loop").mkdir()
    (place / "loop" / "loop").symlink_to("loop")
    small = {
        **{f"prepare {kind}": ([*PREPARE, kind, "--out", f"new-{kind}"], 2000) for kind in STORAGES},
        "train, its first file": ([*TRAIN, "new-run"], 100),
        "train, a checkpoint": ([*TRAIN, "cut-run"], 20_000),
        "evaluate": (["evaluate", *AGAIN, "--data", "data", "--split", "test", "--output", "metrics.json"], 100),
        "predict": (["predict", *AGAIN, "--input", "clips.jsonl", "--output", "polarity.jsonl"], 20),
        "merge": (["merge", *AGAIN, "--output", "merged"], 20_000),
        "study": (["study", "--grid", "grid.yaml", "--output", "study"], 100),
        "configs": (["configs", "zero2", "--copy", "copied.json"], 10),
    }
    good = [([*PREPARE, "numpy", "--out", "data"],), ([*TRAIN, "run"],)]
    after = [([*TRAIN, "cut-run"],)]
    wrong = [(words,) for where in WRONG for words in writes_to(where)]
    said = run_all(place, [*good, *small.values(), *wrong, *after])
    assert [code for code, _ in said[:2]] == [0, 0], said[:2]
    found: dict[str, Any] = dict(zip(small, said[2:], strict=False))
    return {**found, "wrong": said[2 + len(small) : -1], "again": said[-1], "place": place}


NAMES = ["prepare arrow", "prepare numpy", "train, its first file", "train, a checkpoint", "evaluate", "predict"]
NAMES += ["merge", "study", "configs"]


@pytest.mark.parametrize("name", NAMES)
def test_a_command_says_one_line_and_ends_with_code_2(outcomes, name):
    code, said = outcomes[name]
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 2, said
    assert len(lines) == 1
    reason = "the disk took only a part of it" if name == "prepare numpy" else "larger than a file may be here"
    assert f"cannot be written: {reason}" in lines[0]
    assert "free" in lines[0]
    assert "Traceback" not in said


def test_a_wrong_place_is_one_line_for_every_command(outcomes):
    assert len(outcomes["wrong"]) == len(WRONG) * 7
    for code, said in outcomes["wrong"]:
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        assert (code, len(lines)) == (2, 1), said
        assert "Traceback" not in said
    assert [path.read_text() for path in (outcomes["place"] / "full").iterdir()] == ["kept"]


def test_nothing_half_written_is_left(outcomes):
    place = outcomes["place"]
    names = {path.name for path in place.iterdir()} - {"full", "loop"}
    assert names <= {"source.pkl", "clips.jsonl", "grid.yaml", "data", "run", "new-run", "cut-run", "study"}
    for run in ("new-run", "study"):
        left = [path.name for path in (place / run).iterdir() if path.stat().st_size] if (place / run).exists() else []
        assert left == []


def test_the_run_goes_on_when_there_is_room_and_ends_as_if_nothing_had_been(outcomes):
    assert outcomes["again"][0] == 0, outcomes["again"][1]
    adapters = [outcomes["place"] / run / "adapter" / "adapter_model.safetensors" for run in ("run", "cut-run")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
