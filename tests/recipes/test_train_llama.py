"""The recipe as users start it: each launcher, bad input, kills. Processes have deadlines and ports of their own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deepmlf_llm.data.demo import embedded_dataset

DEADLINE = 280


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def launcher(kind: str) -> list[str]:
    scripts = Path(sys.executable).parent
    if kind == "deepspeed":
        return [str(scripts / "deepspeed"), "--num_accelerators", "2", "--master_port", free_port()]
    if kind == "torchrun":
        return [str(scripts / "torchrun"), "--nproc_per_node", "2", "--master_port", free_port()]
    return [sys.executable]


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
    return {**clean, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PATH": path}


def start(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=DEADLINE)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(embedded_dataset(tmp_path_factory.mktemp("data"), sizes=(32, 8, 8)))


@pytest.fixture(scope="module")
def recipe(repository: Path) -> str:
    return str(repository / "recipes" / "train_llama.py")


def small(data: str, **changes: Any) -> list[str]:
    values = {
        "base_model": "tiny-llama",
        "data": data,
        "batch_size": 8,
        "max_steps": 4,
        "fusion_layers": "last:2",
        "num_fusion_tokens": 2,
        "logging_steps": 1,
        "report_to": "none",
        "output_dir": "run",
        **changes,
    }
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


SCHEDULE = {"max_steps": 8, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 3}


def under(kind: str, repository: Path) -> dict[str, str]:
    """The engine of a launcher's runs here."""
    return {"ds": str(repository / "ds_configs" / "zero2.json")} if kind == "deepspeed" else {}


@pytest.fixture(scope="module")
def whole(recipe: str, data: str, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gives the run of a launcher that nobody touched, and how it ended; each is made once."""

    @cache
    def run(kind: str) -> tuple[Path, subprocess.CompletedProcess[str]]:
        folder = tmp_path_factory.mktemp(kind)
        words = small(data, **SCHEDULE, **under(kind, repository))
        done = start([*launcher(kind), recipe, *words], folder)
        assert done.returncode == 0, done.stderr
        return folder / "run", done

    return run


def test_plain_python(whole: Any) -> None:
    run, done = whole("python")
    result = json.loads((run / "result.json").read_text())
    assert (result["train"]["launcher"], result["train"]["processes"]) == ("python", 1)
    assert f"{result['metrics']['test']['mae']:.4f}" in done.stdout
    assert "Warning" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["deepspeed", "torchrun"])
def test_every_launcher(whole: Any, kind: str) -> None:
    run, _ = whole(kind)
    train = json.loads((run / "result.json").read_text())["train"]
    assert (train["processes"], train["utterances_per_step"]) == (2, 8)


@pytest.mark.slow
def test_nothing_but_ds(recipe: str, repository: Path, tmp_path: Path) -> None:
    """The bare command, with a toy in place of the real base model and two epochs instead of all."""
    ds = str(repository / "ds_configs" / "zero2.json")
    cut = ["--base_model", "tiny-llama", "--max_steps", "3", "--data_fraction", "0.1"]
    done = start([*launcher("deepspeed"), recipe, "--ds", ds, *cut], tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("embedded-tiny-llama-")
    assert json.loads((run / "result.json").read_text())["status"] == "finished"
    again = start([*launcher("python"), recipe, "--ds", ds, *cut], tmp_path)  # whoever starts it
    assert "finished before: runs/embedded-tiny-llama-" in again.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["python", "deepspeed"])
def test_killed_and_started_again_equals_uninterrupted(
    recipe: str, data: str, whole: Any, tmp_path: Path, repository: Path, kind: str
) -> None:
    words = [recipe, *small(data, **SCHEDULE, **under(kind, repository))]
    kill_after([*launcher(kind), *words], tmp_path, tmp_path / "run" / "checkpoint-4" / "checkpoint.json")
    assert not (tmp_path / "run" / "result.json").exists()
    resumed = start([*launcher(kind), *words], tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on from checkpoint-" in resumed.stdout
    runs = (whole(kind)[0], tmp_path / "run")
    expected, found = (load_file(run / "adapter" / "adapter_model.safetensors") for run in runs)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def kill_after(command: list[str], cwd: Path, file: Path) -> None:
    """SIGKILL to all processes of a command, as soon as ``file`` is there."""
    running = subprocess.Popen(command, cwd=cwd, env=environment(), start_new_session=True, stdout=-3, stderr=-3)
    end = time.monotonic() + DEADLINE
    while not file.exists() and running.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert file.exists()


BAD = {
    "unknown key": (["--fusion_layer", "3"], "did you mean 'fusion_layers'?"),
    "another type": (["--seed", "many", "--objective.gama", "1"], "--seed='many': expected an integer"),
    "missing data": (["--data", "nowhere"], "data=nowhere: not there"),
    "layers": (["--fusion_layers", "[2, 77]"], "77"),
    "no DeepSpeed file": (["--ds", "none.json"], "--ds none.json: cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_code_2(in_empty_directory: Any, data: str, tmp_path: Path, case: str) -> None:
    words, message = BAD[case]
    done = in_empty_directory("train_llama", *small(data), *words)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert message in errors[0]
    assert list(tmp_path.iterdir()) == []


def test_bad_input_from_outside(recipe: str, data: str, tmp_path: Path) -> None:
    """The same through a process: nothing of a traceback, the code of bad input."""
    done = start([sys.executable, recipe, *small(data), "--fusion_layer", "3"], tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: settings: unknown option --fusion_layer (did you mean 'fusion_layers'?)"


@pytest.mark.slow
def test_bad_input_under_a_launcher_is_said_once(recipe: str, tmp_path: Path) -> None:
    done = start([*launcher("deepspeed"), recipe, "--data", "nowhere"], tmp_path)
    assert done.returncode == 2
    assert (done.stdout + done.stderr).count("error: data=nowhere") == 1


def test_help(in_empty_directory: Any) -> None:
    done = in_empty_directory("train_llama", "--help")
    assert done.returncode == 0
    shown = done.stdout
    assert "--objective.gamma" in shown
    assert "--learning_rate" in shown
