"""Finished studies that nobody ran, and a recipe that trains nothing: the study's own work without minutes of torch."""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from deepmlf_llm.study.cells import Plan, PlannedCell
from deepmlf_llm.study.configurations import gather
from deepmlf_llm.study.directory import CELLS, SCHEMA, STUDY, StudyDirectory
from deepmlf_llm.study.grid import Grid
from deepmlf_llm.study.results import read_all, write_record

HEADS = {"fusion": 0.02, "text": 0.15, "av": 0.45}

FAKE_RECIPE = '''
"""Behaves as the training recipe does, in a tenth of a second: resumes by step, then writes result.json."""
import json, os, pathlib, sys, time
import yaml

options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
config = yaml.safe_load(open(options["--config"]))
run = pathlib.Path(options["--output_dir"])
run.mkdir(parents=True, exist_ok=True)
print("pid", os.getpid(), flush=True)
if config.get("learning_rate") == 9.0:
    print("loading")
    print("error: learning_rate=9.0: the run diverged", file=sys.stderr)
    sys.exit(2)
(run / "run.json").write_text("{}")
metrics = run / "metrics.jsonl"
done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
for step in range(done + 1, int(config["max_steps"]) + 1):
    time.sleep(float(config.get("weight_decay", 0.02)))
    with metrics.open("a") as file:
        file.write(json.dumps({"kind": "train", "step": step, "loss": 1 / step}) + chr(10))
value = (config["seed"] * 7 + config["num_fusion_tokens"] * 3) % 11 / 10 + 0.5
scores = {"mae": value, "corr": 1 - value / 2}
result = {
    "metrics": {"validation": scores, "test": scores},
    "heads": {"validation": {}, "test": {"text": {"mae": value + 0.1}}},
    "train": {"steps": config["max_steps"], "best_step": 1, "epochs": 1.0, "seconds": 0.1, "total_seconds": 0.2,
              "parameters": {"trainable": 10, "total": 20}, "peak_memory_mb": {"resident": 1.0}, "fusion_layers": [1],
              "gates": {"layer 1": {"gca": 0.5, "ffw": 0.5}}},
    "environment": {"python": "3"}, "base_model": {"name": "tiny-llama"}, "data": {"name": "embedded"},
}
aside = run / ".result"
aside.write_text(json.dumps(result))
os.replace(aside, run / "result.json")
'''


@pytest.fixture
def fake_recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe" / "train.py"
    path.parent.mkdir()
    path.write_text(FAKE_RECIPE)
    return path


def planned(tokens: int, seed: int, **settings: Any) -> PlannedCell:
    """A cell by hand."""
    given = {"base_model": "tiny-llama", "num_fusion_tokens": tokens, "seed": seed, "max_steps": 3, **settings}
    return PlannedCell(
        name=f"toy-n{tokens}-s{seed}",
        fingerprint=json.dumps(given, sort_keys=True),
        settings=given,
        values={"base": "tiny-llama", "layers": 4, "blocks": 1, "placement": "even", "num_fusion_tokens": tokens},
        seed=seed,
        processes=1,
        trainable=10,
        total=20,
        step_flops=tokens * 1000,
        steps=given["max_steps"],
        geometry={"utterances": 4, "text_tokens": 9, "frames": {"audio": 5}},
        text_key="all the same",
    )


@pytest.fixture
def make_cell() -> Callable[..., PlannedCell]:
    return planned


@pytest.fixture
def make_plan() -> Callable[..., Plan]:
    """A plan of hand-made cells."""

    def make(cells: Sequence[PlannedCell], name: str = "toy", code: str = "0123") -> Plan:
        return Plan(Grid(name=name, title="Toy", rows=[], seeds=[1]), code, list(cells))

    return make


def write_finished(
    path: Path,
    layers: Sequence[int] = (6, 12, 30),
    blocks: Sequence[int] = (2, 6),
    tokens: Sequence[int] = (4, 8),
    seeds: Sequence[int] = (1, 2),
    failed: int = 1,
) -> Path:
    """A study of made-up results: MAE falls with layers, blocks and tokens, and seeds differ."""
    chance = random.Random(0)
    cells = []
    for number, (depth, count, n, seed) in enumerate(itertools.product(layers, blocks, tokens, seeds)):
        record = made_up(depth, count, n, seed, chance)
        if number < failed:
            record["status"], record["metrics"], record["meta_info"] = "failed", None, None
            record["run_info"] |= {"reason": "loss is nan | <b>", "log_tail": ["Traceback ```", "ValueError: <b>"]}
        directory = path / CELLS / record["cell"]
        directory.mkdir(parents=True)
        (directory / "config.yaml").write_text("seed: 1\n")
        write_record(directory, record)
        cells.append(as_planned(record))
    study = {"schema": SCHEMA, "name": "made-up", "title": "A study <of> nothing | at *all*", "metric": "mae"}
    study |= {"code": "0123", "fixed": {"data": "embedded", "max_steps": 40}, "excluded": {"too deep": 3}}
    (path / STUDY).write_text(json.dumps({**study, "notes": ["A note."], "cells": cells}))
    return path


@pytest.fixture
def finished_study(tmp_path: Path) -> Callable[..., Path]:
    """Writes a study of made-up results into a folder of this test; sizes as for ``write_finished``."""
    return lambda folder="study", **sizes: write_finished(tmp_path / folder, **sizes)


@pytest.fixture
def found(finished_study: Callable[..., Path]) -> Callable[..., Any]:
    """The configurations of such a study."""

    def make(**sizes: Any) -> Any:
        directory = StudyDirectory(finished_study(**sizes))
        return gather(read_all(directory, directory.planned()))

    return make


@pytest.fixture(scope="session")
def reported_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with its report, to be read only: drawing takes seconds."""
    from deepmlf_llm.study.report import write_report

    path = write_finished(tmp_path_factory.mktemp("reported") / "study")
    write_report(StudyDirectory(path))
    return path


def made_up(depth: int, count: int, n: int, seed: int, chance: random.Random) -> dict[str, Any]:
    mae = 1.3 - 0.1 * (depth > 6) - 0.05 * count / 6 - 0.02 * n / 8 + chance.gauss(0, 0.02)
    test = {"mae": mae, "corr": 1.5 - mae, "acc7": 0.3, "acc2_non0": 0.75, "f1_non0": None}
    heads = {head: {"mae": mae + worse} for head, worse in HEADS.items()}
    placed = [(j + 1) * depth // count - 1 for j in range(count)]
    curve = [
        {"kind": "gates", "step": step}
        | {f"layer {i}": {"gca": 0.5 + step * i / 9000, "ffw": 0.5 - step * i / 20000} for i in placed}
        for step in (20, 40)
    ]
    name = f"smollm2-135m-{depth}l-even-{count}-n{n}-s{seed}"
    values = {"base": "smollm2-135m", "layers": depth, "blocks": count, "placement": "even"}
    run = {"fingerprint": name, "code": "0123", "settings": {"gate": "sigmoid"}, "seed": seed, "processes": 1}
    run |= {"values": {**values, "fusion_layers": f"even:{count}", "num_fusion_tokens": n}, "attempts": 1}
    train = {"parameters": {"trainable": 100_000 + 500_000 * count + 576 * n, "total": 60_000_000 + depth}}
    train |= {"step_flops": depth * n * 10**9, "steps": 40, "best_step": 40, "epochs": 0.5}
    train |= {"geometry": {"utterances": 16, "text_tokens": 9, "frames": {"audio": 26, "vision": 19}}}
    train |= {"seconds": depth * n * 0.4 + count, "total_seconds": 60.0, "peak_memory_mb": {"resident": 900.5}}
    train |= {
        "fusion_layers": placed,
        "gates": {f"layer {i}": {"gca": 0.5, "ffw": 0.5} for i in placed},
        "curve": curve,
    }
    data = {"name": "embedded", "used": {"train": {"utterances": 1200}}}
    return {
        "schema": 1,
        "cell": name,
        "status": "finished",
        "run_info": {**run, "reason": None, "log_tail": []},
        "train_info": train,
        "metrics": {"validation": dict(test), "test": test, "heads": {"validation": heads, "test": heads}},
        "meta_info": {"environment": {"python": sys.version.split()[0], "packages": {"torch": "2"}}, "data": data},
    }


def fitted(record: dict[str, Any]) -> dict[str, Any]:
    """A cell that fits ridge regression, beside the run of ``record``."""
    name = f"{record['cell']}-ridge"
    values = {key: record["run_info"]["values"][key] for key in ("base", "layers")} | {"baseline": "ridge"}
    run = {**record["run_info"], "seed": 0, "fingerprint": name, "settings": {"baseline": "ridge"}, "values": values}
    train = {**record["train_info"], "parameters": {"trainable": 0, "total": 60_000_000}, "step_flops": 0, "steps": 0}
    train |= {"seconds": None, "peak_memory_mb": None, "best_step": None, "curve": [], "gates": None}
    return {**record, "cell": name, "run_info": run, "train_info": train}


@pytest.fixture
def make_fitted() -> Callable[..., dict[str, Any]]:
    return fitted


def as_planned(record: dict[str, Any]) -> dict[str, Any]:
    run, train = record["run_info"], record["train_info"]
    return {
        "name": record["cell"],
        "fingerprint": run["fingerprint"],
        "settings": run["settings"],
        "values": run["values"],
        "seed": run["seed"],
        "processes": 1,
        "trainable": train["parameters"]["trainable"],
        "total": train["parameters"]["total"],
        "step_flops": train["step_flops"],
        "steps": 40,
        "geometry": train["geometry"],
        "text_key": "",
    }
