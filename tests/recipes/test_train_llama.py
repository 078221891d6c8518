"""The recipe as users start it: each launcher, bad input, kills. Processes have deadlines and ports of their own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
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


def test_plain_python(recipe: str, data: str, tmp_path: Path) -> None:
    done = start([sys.executable, recipe, *small(data)], tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["train"]["launcher"] == "python"
    assert f"{result['metrics']['test']['mae']:.4f}" in done.stdout
    assert "Warning" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["deepspeed", "torchrun", "python"])
def test_every_launcher_and_engine(recipe: str, data: str, tmp_path: Path, repository: Path, kind: str) -> None:
    engine = [] if kind == "torchrun" else ["--ds", str(repository / "ds_configs" / "zero2.json")]
    done = start([*launcher(kind), recipe, *small(data), *engine], tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["train"]["processes"] == (1 if kind == "python" else 2)
    assert result["train"]["utterances_per_step"] == 8


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
    again = start([*launcher("deepspeed"), recipe, "--ds", ds, *cut], tmp_path)
    assert "finished before: runs/embedded-tiny-llama-" in again.stdout


@pytest.fixture(scope="module")
def ddp(recipe: str, data: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Metrics of two processes without DeepSpeed."""
    folder = tmp_path_factory.mktemp("ddp")
    done = start([*launcher("torchrun"), recipe, *small(data)], folder)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "run" / "result.json").read_text())["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero1", "zero2_offload", "zero3", "zero3_offload"])
def test_every_stage_gives_what_ddp_gives(
    recipe: str, data: str, ddp: Any, tmp_path: Path, repository: Path, engine: str
) -> None:
    ds = str(repository / "ds_configs" / f"{engine}.json")
    done = start([*launcher("torchrun"), recipe, *small(data, ds=ds)], tmp_path)  # it starts in half the time
    assert done.returncode == 0, done.stderr
    mine = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    assert mine["test"]["mae"] == pytest.approx(ddp["test"]["mae"], abs=1e-3)
    weights = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert all(tensor.numel() for tensor in weights.values())  # ZeRO-3 must not write empty pieces


OPPOSITE = """
import sys
sys.path.insert(0, {tests!r})
from conftest import DIMS, Utterances
from deepmlf_llm.training.data import TrainingData
from deepmlf_llm.training.launch import detect
from deepmlf_llm.training.run import run_training
from deepmlf_llm.training.settings import RunSettings

mine = list(DIMS)[detect().rank]  # the one modality that every row of this process lacks
sizes = {{"train": 16, "valid": 6, "test": 6}}
parts = {{name: Utterances(size, seed=0, absent=lambda i: (mine,)) for name, size in sizes.items()}}
dims = {{name: {{"dim": dim}} for name, dim in DIMS.items()}}
settings = RunSettings.from_dict({{
    "base_model": "tiny-llama", "deepspeed": {ds!r}, "output_dir": "run", "batch_size": 8, "num_train_epochs": 2,
    "fusion_layers": "last:2", "num_fusion_tokens": 2, "report_to": "none", "seqaug.p_apply": 0.5, "seqaug.p_feat": 0.3,
    "seqaug.av_p_apply": 0.5, "seqaug.av_p_feat": 0.3,
}})
run_training(settings, TrainingData(**parts, modalities=dims, fingerprint="toy"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_processes_that_lack_opposite_modalities_finish(tmp_path: Path, repository: Path, engine: str) -> None:
    """The hang of this field: one process runs a module that another one skips."""
    script = tmp_path / "opposite.py"
    tests = str(repository / "tests" / "training")
    script.write_text(OPPOSITE.format(tests=tests, ds=str(repository / "ds_configs" / f"{engine}.json")))
    done = start([*launcher("deepspeed"), str(script)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["train"]["steps"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["python", "deepspeed"])
def test_killed_and_started_again_equals_uninterrupted(
    recipe: str, data: str, tmp_path: Path, repository: Path, kind: str
) -> None:
    schedule = {"max_steps": 8, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 3}
    engine = {"ds": str(repository / "ds_configs" / "zero2.json")} if kind == "deepspeed" else {}

    def command(name: str) -> list[str]:
        return [*launcher(kind), recipe, *small(data, **schedule, **engine, output_dir=name)]

    assert start(command("whole"), tmp_path).returncode == 0
    kill_after(command("cut"), tmp_path, tmp_path / "cut" / "checkpoint-4" / "checkpoint.json")
    assert not (tmp_path / "cut" / "result.json").exists()
    resumed = start(command("cut"), tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on from checkpoint-" in resumed.stdout
    whole, cut = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


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
