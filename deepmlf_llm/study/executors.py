"""Where a study runs: in this process (``local``), as jobs of SLURM (``slurm``), by ssh on named hosts (``hostfile``).

The two latter start nodes: processes of the same command with ``--join``, each of which takes cells of the shared
folder until all have ended. The folder, the checkout and the Python environment are at the same place on all machines.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from deepmlf_llm.errors import ConfigError, RunError
from deepmlf_llm.files import make_directory, write_aside
from deepmlf_llm.paths import shown
from deepmlf_llm.study import guard
from deepmlf_llm.study.node import NODES

EXECUTORS = ("local", "slurm", "hostfile")
_HOST = re.compile(r"[A-Za-z0-9_][\w.@:%-]*")
_PASSED_ON = ("PYTHONPATH", "DEEPMLF_CACHE", "DEEPMLF_DTYPE", "HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class NodeCommand:
    """What every node runs.

    Args:
        words: of the command line, Python first.
        folder: of the study, absolute.
        name: of the study.
        where: directory to run in.
        variables: of the environment, that a node needs and another machine may not have.
    """

    words: Sequence[str]
    folder: Path
    name: str
    where: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    def line(self, *more: str) -> str:
        """For a shell, with further options."""
        given = [f"{name}={value}" for name, value in self.variables.items()]
        return shlex.join(["env", *given, *self.words, *more])


def passed_on(package: Path) -> dict[str, str]:
    """Variables that make another machine's process the same as this one; ``package`` is where the code lies."""
    given = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    paths = dict.fromkeys(filter(None, [str(package), *given.get("PYTHONPATH", "").split(os.pathsep)]))
    return {**given, "PYTHONPATH": os.pathsep.join(paths)}


class Executor(Protocol):
    """Runs a study somewhere."""

    def shown(self, command: NodeCommand) -> str:
        """What would be started, for a dry run."""

    def start(self, command: NodeCommand) -> int:
        """Starts it; returns the exit code, where it waits for the end that of the study."""


@dataclass(frozen=True)
class Local:
    """This process does the work.

    Args:
        work: runs the study and returns its exit code.
    """

    work: Callable[[], int]

    def shown(self, command: NodeCommand) -> str:
        return f"runs in this process, in {shown(command.folder)}"

    def start(self, command: NodeCommand) -> int:
        return self.work()


@dataclass(frozen=True)
class Slurm:
    """An array of jobs, each of which is a node: they begin as machines get free, and help from then on.

    Args:
        nodes: how many.
        options: for sbatch, as ``--partition=gpu``.
    """

    nodes: int
    options: Sequence[str] = ()

    def shown(self, command: NodeCommand) -> str:
        wrong = [option for option in self.options if not re.fullmatch(r"-[^\r\n]*", option)]
        if wrong:
            raise ConfigError(f"--sbatch={wrong[0]!r}: expected one option of sbatch, as --sbatch=--partition=gpu")
        log = command.folder / NODES / "slurm-%A-%a.log"
        lines = [f"--job-name=study-{command.name}", f"--array=0-{self.nodes - 1}", f"--output={log}"]
        lines += ["--open-mode=append", "--requeue", "--signal=B:TERM@120", *self.options]
        return "\n".join(["#!/usr/bin/env bash", *(f"#SBATCH {line}" for line in lines), self._body(command)])

    def _body(self, command: NodeCommand) -> str:
        """Two minutes before its time is up a job ends its cells, releases them, and is queued again."""
        return (
            "set -uo pipefail\n"
            f"cd {shlex.quote(str(command.where))} || exit 1\n"
            f"{command.line()} &\n"
            "node=$!\n"
            "trap 'kill -TERM $node' TERM\n"
            "wait $node; code=$?\n"
            'if kill -0 "$node" 2>/dev/null; then wait "$node"; code=$?; fi\n'
            "case $code in\n"
            '  137 | 143) scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" ;;\n'
            "esac\n"
            "exit $code\n"
        )

    def start(self, command: NodeCommand) -> int:
        text = self.shown(command)
        program = _program("sbatch")
        script = command.folder / NODES / "slurm.sbatch"
        make_directory(script.parent)
        write_aside(script, text)
        done = subprocess.run([program, "--parsable", str(script)], capture_output=True, text=True)
        if done.returncode:
            raise RunError(f"sbatch refused {shown(script)}: {(done.stderr or done.stdout).strip() or done.returncode}")
        print(f"submitted {self.nodes} nodes as job {done.stdout.strip()}; script and logs: {shown(script.parent)}")
        return 0


@dataclass(frozen=True)
class Host:
    """A machine, and how many cells it runs at a time (None: as it sees fit)."""

    name: str
    slots: int | None = None


@dataclass(frozen=True)
class Hosts:
    """One node on each host, by ssh, until all cells have ended.

    A node ends when its connection does: its guard there sees the end of its input.

    Args:
        hosts: to connect to without a question.
    """

    hosts: Sequence[Host]

    def shown(self, command: NodeCommand) -> str:
        return "\n".join(shlex.join(self._line("ssh", host, command)) for host in self.hosts)

    def _line(self, ssh: str, host: Host, command: NodeCommand) -> list[str]:
        guarded = NodeCommand(
            [command.words[0], guard.__file__, *command.words],
            command.folder,
            command.name,
            command.where,
            command.variables,
        )
        more = ["--slots", str(host.slots)] if host.slots else []
        there = f"cd {shlex.quote(str(command.where))} && exec {guarded.line(*more)}"
        return [ssh, "-o", "BatchMode=yes", "-o", "ServerAliveInterval=15", host.name, there]

    def start(self, command: NodeCommand) -> int:
        """Waits for all of them; their lines are shown behind the name of their host.

        Returns:
            0 or 1 (cells failed) where a node came to the end of the study, whatever became of the others; else the
            first code of a node.
        """
        ssh = _program("ssh")
        started = [
            subprocess.Popen(
                self._line(ssh, host, command),
                stdin=subprocess.PIPE,  # its end, when this process goes, ends the node
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                bufsize=1,
            )
            for host in self.hosts
        ]
        readers = [
            threading.Thread(target=_show, args=(host.name, process), daemon=True)
            for host, process in zip(self.hosts, started, strict=True)
        ]
        for reader in readers:
            reader.start()
        try:
            codes = [process.wait() for process in started]
        finally:
            for process in started:
                assert process.stdin is not None
                process.stdin.close()
        for reader in readers:
            reader.join()
        return self._judged(codes)

    def _judged(self, codes: Sequence[int]) -> int:
        ended = [code for code in codes if code in (0, 1)]
        for host, code in zip(self.hosts, codes, strict=True):
            if ended and code not in (0, 1):
                print(f"warning: {host.name} ended with {code}; other hosts did its cells", file=sys.stderr)
        return max(ended) if ended else next(iter(codes))


def _show(name: str, process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        print(f"{name}: {line.rstrip()}", flush=True)


def read_hostfile(path: Path) -> list[Host]:
    """Hosts from a file in the form of DeepSpeed's: ``name slots=N`` a line, ``#`` begins a comment.

    Raises:
        ConfigError: not there, no host, one twice, or a line of another form; one message names them all.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--hostfile {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    hosts: list[Host] = []
    wrong: list[str] = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        slots = re.fullmatch(r"slots=([1-9]\d{0,3})", words[1]) if len(words) == 2 else None
        if not _HOST.fullmatch(words[0]) or len(words) > 2 or (len(words) == 2 and slots is None):
            wrong.append(f"line {number}: expected `name` or `name slots=N`")
        elif any(host.name == words[0] for host in hosts):
            wrong.append(f"line {number}: {words[0]} stands there twice")
        else:
            hosts.append(Host(words[0], int(slots[1]) if slots else None))
    if wrong or not hosts:
        raise ConfigError(f"--hostfile {path}: {'; '.join(wrong) or 'names no host'}")
    return hosts


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise RunError(f"{name}: not found on this machine; start the study where it is, or take another --executor")
    return found
