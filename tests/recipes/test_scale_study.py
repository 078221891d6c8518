"""The recipe as a user runs it; real cells, of a random toy, only in the slow tests."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pyarrow.parquet
import pytest
import yaml

from deepmlf_llm.commands import study
from deepmlf_llm.data.demo import embedded_dataset
from deepmlf_llm.study import plan as planning
from deepmlf_llm.study.claims import turn
from deepmlf_llm.study.directory import StudyDirectory
from deepmlf_llm.study.node import NODES, REPORT, Node
from scripts.kill_nodes import start, study_table
from tests.processes import Done, at_work

TINY = {
    "fixed": {"text_cache": "disk", "ffw_scope": "fusion", "batch_size": 8, "max_steps": 8, "learning_rate": 0.01}
    | {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps", "save_steps": 2, "logging_steps": 1},
    "grid": [{"backbone": "tiny-llama", "fusion_layers": ["even:1", "even:2"], "num_fusion_tokens": [2, 4]}],
}


@pytest.fixture
def recipe(in_empty_directory):
    return partial(in_empty_directory, "scale_study")


@pytest.fixture(scope="module")
def data(isolated_cache) -> str:
    return str(embedded_dataset(sizes=(48, 16, 16)))


@pytest.fixture
def grid(tmp_path, data):
    """Writes a grid file."""

    def write(name: str = "tiny", **changes) -> Path:
        content = {"name": name, "seeds": [1, 2], **TINY, **changes}
        content["fixed"] = {"data": data, **content["fixed"]}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def refused(done: Done) -> str:
    """Its one line."""
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_bad_input_is_one_line_and_nothing_is_written(recipe, grid, tmp_path):
    wrong = {
        "unknown key 'colour'": grid("a", colour="blue"),
        "grid: empty": grid("b", grid=[]),
        "base_model='./none': not there": grid("c", grid=[{"backbone": "./none"}]),
        "grid row 1: unknown key 'gat' (did you mean 'gate'?)": grid("d", grid={"backbone": "tiny-llama", "gat": 1}),
        "nothing.yaml: cannot be read": tmp_path / "nothing.yaml",
    }
    for part, path in wrong.items():
        assert part in refused(recipe("--grid", path, "--output", "out"))
    assert "unknown option --gird (did you mean '--grid'?)" in refused(recipe("--gird", "x"))
    assert "'0': expected an integer >= 1" in refused(recipe("--slots", "0"))
    assert "not allowed with" in refused(recipe("--plan", "--report-only"))
    assert "give --output DIR, and no --grid" in refused(recipe("--report-only"))
    assert "nor --finished" in refused(recipe("--report-only", "--output", "out", "--finished", "x"))
    assert "no study there" in refused(recipe("--report-only", "--output", "out"))
    assert not (tmp_path / "out").exists()


def test_another_studys_folder_is_refused(recipe, grid, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "study.json").write_text('{"schema": 1, "name": "another"}')
    done = recipe("--grid", grid(), "--output", "out")
    assert "--output out: belongs to the study 'another', and this grid is 'tiny'" in refused(done)


def test_plan_lists_the_cells_and_stops(recipe, grid, tmp_path):
    excluded = [{"name": "few tokens, two blocks", "where": {"num_fusion_tokens": 2, "fusion_layers": "even:2"}}]
    done = recipe("--grid", grid(exclude=excluded), "--plan", "--output", "out")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "Study tiny: 6 cells"
    assert [line.split()[0].rpartition("-")[0] for line in lines[2:8]] == [
        f"tiny-llama-4l-even-{k}-n{n}-s{seed}" for k, n in ((1, 2), (1, 4), (2, 4)) for seed in (1, 2)
    ]
    assert "left out: 2 cells, few tokens, two blocks" in done.stdout
    assert not (tmp_path / "out").exists()
    some = recipe("--grid", grid(), "--plan", "--seeds", "7", "--only", "*even-1*", "--only", "*n4*")
    names = [line.split()[0].rpartition("-")[0] for line in some.stdout.splitlines()[2:]]
    assert names == [f"tiny-llama-4l-even-{k}-n{n}-s7" for k, n in ((1, 2), (1, 4), (2, 4))]
    assert "--only: '*n9*' fits no cell; --plan lists them" in refused(recipe("--grid", grid(), "--only", "*n9*"))
    assert "--seeds 5-: expected seeds" in refused(recipe("--grid", grid(), "--seeds", "5-"))


def test_dry_run_says_what_would_run(recipe, grid, tmp_path):
    done = recipe("--grid", grid(), "--dry-run", "--output", "out")
    assert done.returncode == 0
    names = [line.split()[0] for line in done.stdout.splitlines()[2:]]
    assert done.stdout.count("starts") == len(names) == 8
    (tmp_path / "out" / "cells" / names[0]).mkdir(parents=True)
    (tmp_path / "out" / "study.json").write_text('{"schema": 1, "name": "tiny"}')
    done = recipe("--grid", grid(), "--dry-run", "--output", "out")
    assert done.stdout.count("starts") == 7
    assert done.stdout.count("goes on") == 1


def test_a_study_goes_on_elsewhere_from_what_was_put_away(recipe, grid, tmp_path):
    planned = recipe("--grid", grid(), "--output", "first", "--plan", "--only", "*even-1-n2*").stdout.splitlines()
    first = [line.split()[0] for line in planned[2:]]
    assert recipe("--grid", grid(), "--output", "first", "--only", "*even-1-n2*").returncode == 0
    shutil.rmtree(tmp_path / "first" / "cells")
    again = ("--grid", grid(seeds=[1, 2, 3]), "--output", "more", "--finished", "first", "--only", "*even-1-n2*")
    asked = recipe(*again, "--dry-run").stdout
    assert "--finished first: has 2 of 12 cells of this study\n" in asked
    assert [line.split()[0] for line in asked.splitlines() if "finished elsewhere, skipped" in line] == first
    assert asked.count("starts") == 1
    assert not (tmp_path / "more").exists()
    done = recipe(*again)
    assert done.returncode == 0, done.stderr
    logs = sorted(path.parent.name for path in (tmp_path / "more" / "cells").glob("*/log.txt"))
    assert [name.rpartition("-")[0] for name in logs] == ["tiny-llama-4l-even-1-n2-s3"]  # no other was run
    kept = pyarrow.parquet.read_table(tmp_path / "more" / "results.parquet")["cell"].to_pylist()
    assert sorted(kept) == sorted([*first, *logs])
    given = ("--output", "third", "--finished")
    assert "error: nothing: no study there" in refused(recipe("--grid", grid(), *given, "nothing"))
    assert "none of them is of this grid" in refused(recipe("--grid", grid(seeds=[9]), *given, "first"))
    assert not (tmp_path / "third").exists()


def test_default_study_without_the_real_base_runs_on_toys(recipe, monkeypatch):
    monkeypatch.setattr(planning, "smollm2_available", lambda: False)

    def absent(name, *rest):
        if name == "smollm2-135m":
            raise planning.BaseModelError("not installed")
        return shape(name, *rest)

    shape = planning.base_model_shape
    monkeypatch.setattr(planning, "base_model_shape", absent)
    done = recipe("--plan")
    assert done.returncode == 0
    assert "Study default: 15 cells" in done.stdout
    for toy, real in ((2, 6), (4, 12)):
        note = (
            f"note: tiny-llama, {toy} layers (random weights) stands in for smollm2-135m, {real} layers, which is not"
        )
        assert note in done.stdout
    assert done.stdout.count("tiny-llama-4l-even-4-n4-text-s") == 3


def test_executors_refuse_what_is_not_theirs(recipe, grid, tmp_path):
    given = ("--grid", grid(), "--output", "out")
    for part, words in {
        "give --nodes N": ("--executor", "slurm"),
        "--nodes and --sbatch belong to --executor slurm": ("--nodes", 2),
        "--executor hostfile and --hostfile FILE go together": ("--executor", "hostfile"),
        "--join is for the processes that it starts": ("--executor", "slurm", "--nodes", 2, "--join"),
        "--lease 3: expected 20 to 86400 seconds": ("--lease", 3),
        "'slrm' is none of local, slurm, hostfile (did you mean 'slurm'?)": ("--executor", "slrm"),
    }.items():
        assert part in refused(recipe(*given, *words))
    assert not (tmp_path / "out").exists()


def test_submitting_writes_the_study_and_a_script(recipe, grid, tmp_path, monkeypatch):
    program = tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 4711\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    row = {"backbone": "tiny-llama", "fusion_layers": "even:1", "num_fusion_tokens": 2}
    path = grid(grid=[row], seeds=[1])
    given = ("--grid", path, "--output", "out", "--executor", "slurm", "--nodes", 4, "--sbatch=--gpus=1", "--slots", 2)
    shown = recipe(*given, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert not (tmp_path / "out").exists()
    done = recipe(*given)
    assert done.returncode == 0, done.stderr
    assert "submitted 4 nodes as job 4711" in done.stdout
    folder = tmp_path / "out"
    assert (folder / "nodes" / "grid.yaml").read_bytes() == path.read_bytes()
    assert len(json.loads((folder / "study.json").read_text())["cells"]) == 1
    script = (folder / "nodes" / "slurm.sbatch").read_text()
    assert script in shown.stdout
    assert "#SBATCH --array=0-3" in script
    assert "#SBATCH --gpus=1" in script
    assert f"--grid {folder}/nodes/grid.yaml --output {folder} --join --lease 90 --slots 2 &" in script


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_where_nodes_work_a_start_without_join_is_refused(recipe, grid, tmp_path):
    path = grid(fixed={**TINY["fixed"], "text_cache": "none"})
    with Node(tmp_path / "out") as node:
        for words in ((), ("--executor", "slurm", "--nodes", 2)):
            said = refused(recipe("--grid", path, "--output", "out", *words))
            assert f"error: --output out: node {node.name} works there on other code version and cells than" in said
    assert not (tmp_path / "out" / "study.json").exists()


def test_a_report_waits_for_the_one_that_is_being_written(tmp_path, monkeypatch, capsys):
    """It would end after it, and have read less."""
    directory, written = StudyDirectory(tmp_path), []
    directory.cell("c").mkdir(parents=True)
    (tmp_path / "study.json").write_text('{"schema": 1, "name": "tiny", "cells": []}')
    monkeypatch.setattr("deepmlf_llm.study.report.write_report", lambda directory: written.append(directory.path) or [])
    report = threading.Thread(target=study.main, args=(["report", str(tmp_path)],))
    with Node(tmp_path) as node, turn(node, tmp_path / NODES / REPORT):
        report.start()
        report.join(1.0)
        assert written == []
    report.join(30)
    assert written == [tmp_path]
    assert "note: another process has its turn to write the report; waiting for its end\n" in capsys.readouterr().out
    assert list((tmp_path / NODES).glob("*.json")) == []  # a report is no node at work


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_killed_again_and_again_it_ends_with_the_same_table(recipe, grid, tmp_path):
    """Real cells: at their imports, in their first and later steps, near their end. More instants are tried with cells
    that train nothing (study/test_runner.py)."""
    few = {**TINY["grid"][0], "fusion_layers": ["even:1"], "num_fusion_tokens": [2]}
    path = grid(grid=[few])
    began = time.monotonic()
    whole = start("--grid", path, "--output", tmp_path / "whole", "--slots", 2, cache=tmp_path / "cache-1")
    output = whole.communicate()[0]
    assert whole.returncode == 0, output
    cell_seconds = (time.monotonic() - began) / 2  # two cells at once, and the start
    expected = study_table(tmp_path / "whole")
    assert len(expected) == 2

    chance, folder = random.Random(0), tmp_path / "killed"
    given = ("--grid", path, "--output", folder, "--slots", 2)
    for share in (0.2, 0.4, 0.6, 0.8, 1.0):
        process = start(*given, cache=tmp_path / "cache-2")
        while process.poll() is None and not (folder / "study.json").exists():
            time.sleep(0.05)
        try:
            process.wait((share + chance.uniform(-0.1, 0.1)) * cell_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        deadline = time.monotonic() + 10
        while at_work(folder) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert at_work(folder) == []
    process = start(*given, cache=tmp_path / "cache-2")
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert study_table(folder) == expected

    reports = [(folder / name).read_bytes() for name in ("report.md", "report.html", "results.parquet")]
    assert recipe("--report-only", "--output", folder).returncode == 0
    assert [(folder / name).read_bytes() for name in ("report.md", "report.html", "results.parquet")] == reports

    row = {"backbone": "tiny-llama", "fusion_layers": "even:1", "num_fusion_tokens": 3}
    planned = recipe("--grid", grid(grid=[few, row], seeds=[1]), "--output", folder, "--dry-run").stdout
    assert (planned.count("finished, skipped"), planned.count("starts")) == (1, 1)
    assert "n3-s1" in next(line for line in planned.splitlines() if "starts" in line)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_cell_of_two_processes_under_the_launcher(repository, grid, tmp_path):
    fixed = {**TINY["fixed"], "deepspeed": str(repository / "ds_configs" / "zero2.json"), "max_steps": 2}
    row = {"backbone": "tiny-llama", "fusion_layers": "even:1", "num_fusion_tokens": 2}
    path = grid(fixed=fixed, grid=[row], seeds=[1], processes=2)
    process = start("--grid", path, "--output", tmp_path / "out", "--slots", 1, cache=tmp_path / "cache")
    output = process.communicate()[0]
    assert process.returncode == 0, output
    (record,) = (json.loads(p.read_text()) for p in (tmp_path / "out").glob("cells/*/cell.json"))
    assert record["status"] == "finished"
    assert record["run_info"]["processes"] == 2
