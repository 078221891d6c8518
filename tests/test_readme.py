"""What the README shows is run: its Python block as it stands, its commands on a small file and a toy model."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text()
DIMS = {"audio": 4, "vision": 3}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_block_runs_as_it_stands(tmp_path, monkeypatch):
    (block,) = blocks("python")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_every_file_it_links_to_is_there():
    links = re.findall(r"\]\(((?!https?:)[^)#]+)\)", README)
    assert "docs/architecture.md" in links
    for link in links:
        assert (REPOSITORY / link).exists(), link


def test_its_make_commands_are_targets():
    (first, *_) = blocks("bash")
    for line in first.splitlines():
        target = shlex.split(line, comments=True)[1]
        assert re.search(rf"^{target}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE), target


def split(rng, size: int) -> dict:
    lengths = {name: rng.integers(1, 9, size) for name in DIMS}
    return {
        "id": [f"clip{i}" for i in range(size)],
        "raw_text": [f"WORDS NUMBER {i}" for i in range(size)],
        **{name: rng.normal(size=(size, 8, dim)).astype(np.float32) for name, dim in DIMS.items()},
        **{f"{name}_lengths": list(map(int, lengths[name])) for name in DIMS},
        "regression_labels": rng.uniform(-3, 3, size).astype(np.float32),
    }


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory) -> tuple[dict[str, str], dict[str, str]]:
    """README words -> what stands for them here; and options that shorten a recipe."""
    where, rng = tmp_path_factory.mktemp("readme"), np.random.default_rng(0)
    data = {name: split(rng, size) for name, size in (("train", 24), ("valid", 8), ("test", 8))}
    (where / "mosi.pkl").write_bytes(pickle.dumps(data))
    row = {"id": "a", "text": "so so", "audio": rng.normal(size=(5, DIMS["audio"])).tolist(), "vision": None}
    (where / "clips.jsonl").write_text(json.dumps(row) + "\n")
    words = {
        "mosi.pkl": f"{where}/mosi.pkl",
        "data/mosi": f"{where}/data",
        "meta-llama/Llama-3.2-1B": "tiny-llama",
        "runs/NAME/adapter": f"{where}/run/adapter",
        "merged": f"{where}/merged",
        **{name: f"{where}/{name}" for name in ("clips.jsonl", "polarity.jsonl", "test.json")},
    }
    run = f"--output_dir {where}/run --num_train_epochs 1 --batch_size 8 --fusion_layers last:2"
    shorter = {"train_llama.py": run, "scale_study.py": f"--plan --output {where}/study"}
    return words, shorter


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the checkout, whose ``.venv`` is the environment of this interpreter."""
    copy = tmp_path_factory.mktemp("newcomer") / "checkout"
    left_out = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "docs", "runs", "tests", "*.egg-info")
    shutil.copytree(REPOSITORY, copy, ignore=left_out)
    scripts = Path(sys.executable).parent
    if (scripts / "activate").is_file():
        (copy / ".venv").symlink_to(scripts.parent)
    else:  # an interpreter of its own, as on a CI machine
        (copy / ".venv" / "bin").mkdir(parents=True)
        (copy / ".venv" / "bin" / "activate").write_text(f'export PATH="{scripts}:$PATH"\n')
    return copy


def in_a_new_shell(checkout: Path, lines: str) -> subprocess.CompletedProcess[str]:
    """Lines typed into a shell that knows nothing: no variables, no profile; only the cache of the tests is given."""
    kept = {name: os.environ[name] for name in ("DEEPMLF_CACHE", "HF_HUB_OFFLINE", "OMP_NUM_THREADS")}
    bare = {"HOME": str(checkout.parent), "PATH": "/usr/bin:/bin", **kept}
    command = ["/usr/bin/env", "bash", "--noprofile", "--norc", "-c", lines]
    return subprocess.run(command, cwd=checkout, env=bare, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_its_commands_run_as_a_newcomer_types_them(stand_ins, checkout):
    words, shorter = stand_ins
    _, entry, commands = blocks("bash")
    for line in commands.splitlines():
        command = [words.get(word, word) for word in shlex.split(line)]
        recipe = next(Path(word).name for word in command if word.startswith("recipes/"))
        if command[0] == "deepspeed":
            command[1:1] = ["--num_accelerators", "2", "--master_port", "29571"]
        done = in_a_new_shell(checkout, f"{entry}{shlex.join(command)} {shorter.get(recipe, '')}")
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    assert json.loads(Path(words["polarity.jsonl"]).read_text())["id"] == "a"
    assert "mae" in json.loads(Path(words["test.json"]).read_text())["metrics"]


def test_the_way_in_is_the_only_one_needed(checkout):
    """Without it the shell has no such Python; with it the very same line works."""
    _, entry, _ = blocks("bash")
    line = "python -c 'import torch' && command -v deepspeed"
    assert in_a_new_shell(checkout, f"export PATH=\n{line}").returncode != 0
    assert in_a_new_shell(checkout, f"{entry}{line}").returncode == 0


def test_its_extras_are_those_of_the_project():
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"pip install .*?\[([\w,-]+)\]", README)
    assert named
    assert all(set(names.split(",")) <= extras.keys() for names in named)
