"""No file of a run's directory runs code when the run goes on, whoever reads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deepmlf_llm.errors import RunError
from deepmlf_llm.training import checkpoints
from deepmlf_llm.training.data import TrainingData
from deepmlf_llm.training.run import run_training
from deepmlf_llm.training.settings import RunSettings
from deepmlf_llm.training.trusted import tensors_only

from .test_run import run_until

MakeSettings = Callable[..., RunSettings]


class Evil:
    """Makes a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


def poison(path: Path, mark: Path, inside: bool) -> None:
    """Exchanges a torch file for one that runs code; with a manifest that fits, as an attacker would."""
    if inside:
        content = torch.load(path, weights_only=False)
        content["more"] = Evil(mark)
        torch.save(content, path)
    else:
        torch.save(Evil(mark), path)
    directory = next(parent for parent in path.parents if (parent / checkpoints.MANIFEST).is_file())
    checkpoints.commit(directory)


@pytest.mark.parametrize("inside", [False, True], ids=["instead", "inside"])
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_no_file_of_a_checkpoint_runs_code(
    toy_settings: MakeSettings,
    toy_data: TrainingData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    inside: bool,
) -> None:
    settings = toy_settings(save_strategy="steps", save_steps=2, max_steps=4)
    run_until(monkeypatch, settings, toy_data, 3)
    mark = tmp_path / "mark"
    poison(tmp_path / "run" / "checkpoint-2" / name, mark, inside)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # a user's habit must not open the door
    for trust in (False, True):
        with pytest.raises(RunError, match=r"checkpoint-2: .*was not read .*delete the checkpoint"):
            run_training(settings, toy_data, trust_run=trust)
    assert not mark.exists()
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_tensors_and_numbers_are_read(tmp_path: Path) -> None:
    content = {"step": 3, "state": [torch.ones(2), 0.5, "adam"]}
    torch.save(content, tmp_path / "x.pt")
    with tensors_only():
        assert torch.load(tmp_path / "x.pt", weights_only=False)["step"] == 3


UNDER_DEEPSPEED = """
import json, os, shutil, sys
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a process that is forked cannot use CUDA
import deepspeed
import torch

sys.path.insert(0, {repository!r})
from tests.training.conftest import DIMS, Utterances
from tests.training.test_trusted import poison

from deepmlf_llm.errors import DeepMLFError
from deepmlf_llm.training import launch
from deepmlf_llm.training import run as run_module
from deepmlf_llm.training.data import TrainingData
from deepmlf_llm.training.run import run_training
from deepmlf_llm.training.settings import RunSettings

sizes = {{"train": 16, "valid": 6, "test": 6}}
parts = {{name: Utterances(size, seed=0) for name, size in sizes.items()}}
data = TrainingData(**parts, modalities={{name: {{"dim": dim}} for name, dim in DIMS.items()}}, fingerprint="toy")

# Imported once; each engine has a process and a folder of its own.
for engine, ds in {engines!r}.items():
    if not (process := os.fork()):
        break
    assert os.waitpid(process, 0)[1] == 0, engine
else:
    sys.exit()
os.mkdir(engine)
os.chdir(engine)


def settings(**changes):
    return RunSettings.from_dict({{
        "base_model": "tiny-llama", "num_layers": 2, "deepspeed": ds, "output_dir": "run", "batch_size": 8,
        "max_steps": 4, "save_strategy": "steps", "save_steps": 1, "fusion_layers": [1], "num_fusion_tokens": 2,
        "report_to": "none", "save_total_limit": None, **changes,
    }})


def attempt(**changes):
    try:
        return run_training(settings(**changes), data)
    except DeepMLFError as error:
        return type(error).__name__ + ": " + str(error)


launch.end_process_group = lambda: None  # DeepSpeed cannot begin anew in one process
found = {{}}
attempt()
run = Path("run")
for left in ("result.json", "adapter", "checkpoint-4", "checkpoint-2", "checkpoint-3"):
    path = run / left
    shutil.rmtree(path) if path.is_dir() else path.unlink()
shutil.copytree(run, "clean")
whole = attempt()
assert isinstance(whole, dict), whole
found["whole"] = whole["metrics"]
files = [p.relative_to("clean") for p in Path("clean/checkpoint-1").rglob("*.p*t*")]
files = [p for p in files if p.suffix in (".pt", ".pth")]
found["files"] = sorted(str(p) for p in files)
for file in files:
    shutil.rmtree(run)
    shutil.copytree("clean", run)
    poison(run / file, Path("mark"), inside=True)
    found[str(file)] = attempt()
found["marked"] = Path("mark").exists()

weights = {{}}


def spoiled(*args):
    trainer = make(*args)
    calls = []

    def spoil(gradient):
        calls.append(1)
        weights["before"] = [p.detach().clone() for p in trainer.model.parameters() if p.requires_grad]
        return gradient * torch.inf if len(calls) == 2 else gradient

    trainer.model.parameter_groups()["fusion"][-1][1].register_hook(spoil)
    weights["after"] = [p for p in trainer.model.parameters() if p.requires_grad]
    return trainer


make, run_module.make_trainer = run_module.make_trainer, spoiled
found["gradient"] = attempt(output_dir="gradient")
found["untouched"] = all(torch.equal(a, b) for a, b in zip(weights["before"], weights["after"]))
run_module.make_trainer = make
parts["train"][3]["label"] = 3e38
found["label"] = attempt(output_dir="label", batch_size=16)
Path("found.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def under_deepspeed(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """The folder of an engine's runs is named after it."""
    folder = tmp_path_factory.mktemp("deepspeed")
    engines = {engine: str(repository / "ds_configs" / f"{engine}.json") for engine in ("zero2", "zero3")}
    script = folder / "script.py"
    script.write_text(UNDER_DEEPSPEED.format(repository=str(repository), engines=engines))
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=folder, env=environment, capture_output=True, text=True, timeout=580
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.slow  # DeepSpeed's imports and sixteen runs
@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_the_same_under_deepspeed(under_deepspeed: Path, engine: str) -> None:
    found = json.loads((under_deepspeed / engine / "found.json").read_text())
    assert "mae" in found["whole"]["test"]  # what was gathered from DeepSpeed is read
    assert {Path(name).name for name in found["files"]} == {"optimizer.pt", "rng_state.pth", "scheduler.pt"}
    for file in found["files"]:
        assert found[file].startswith("RunError: run/checkpoint-1: a file of this checkpoint"), file
    assert not found["marked"]
    assert "step 2: the gradient of the weights is not finite" in found["gradient"]
    assert found["untouched"] or engine == "zero3"  # whose weights are shards after the run
    assert "label of '3' reaches 3e+38" in found["label"]
