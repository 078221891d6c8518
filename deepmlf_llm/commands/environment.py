"""Whether this Python can run a command at all: said in one line, before anything else is imported.

Standard library only, and readable by an older Python: the recipes import it first.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from deepmlf_llm.paths import shown

OLDEST_PYTHON = (3, 11)
NEEDED = ("torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "yaml")


def check_environment() -> None:
    """Ends the program with code 2 and one line where this Python is too old or lacks what every command needs.

    A recipe that is started outside the environment that ``make setup`` made would fail with a ModuleNotFoundError.
    """
    if sys.version_info < OLDEST_PYTHON:
        versions = [".".join(map(str, version)) for version in (sys.version_info[:2], OLDEST_PYTHON)]
        problem = f"Python {versions[0]} ({sys.executable}) is too old, expected {versions[1]} or newer"
    else:
        missing = [name for name in NEEDED if find_spec(name) is None]
        if not missing:
            return
        problem = "this Python ({}) has no {}".format(sys.executable, ", ".join(missing))
    print(f"error: {problem}: {advice()}", file=sys.stderr)
    raise SystemExit(2)


def advice() -> str:
    """Which environment to enter, or how to make one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").is_file():
        return "install deepmlf_llm with its dependencies there, or enter the environment that has them"
    folder = root / ".venv"
    enter = f"enter the environment of this checkout: {entry(folder)}"
    if not (folder / "bin" / "activate").is_file():
        enter = f"make one with `make setup` and {enter}"
    return f'{enter} (or, into an environment of your own: pip install -e "{shown(root)}[all]")'


def entry(environment: Path) -> str:
    """The line that enters a virtual environment."""
    return "source {}".format(shown(environment / "bin" / "activate"))


def entered(environment: Path) -> bool:
    """Whether the shell that started this program is in that environment."""
    active = os.environ.get("VIRTUAL_ENV")
    return active is not None and Path(active).resolve() == environment.resolve()
