"""Runs of one or several processes on this machine, forked from one that has imported everything: seconds each.

What a launcher does is done here: the environment of each process, and the end of the others where one has failed.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from deepmlf_llm.commands import train
from deepmlf_llm.commands.shell import run_recipe
from deepmlf_llm.training.launch import free_port

_IMPORTED = "\n-- imported --\n"  # behind it a process leaves the names of its modules
_HEAVY = {
    *("accelerate", "bitsandbytes", "deepmlf_llm", "deepspeed", "gguf", "matplotlib", "numpy", "pandas", "peft"),
    *("pyarrow", "rich", "safetensors", "scipy", "sklearn", "tokenizers", "torch", "transformers"),
}
GRACE = 30.0  # seconds that the others have when one process has failed, as under torchrun


@dataclass(frozen=True)
class Ended:
    """How the processes of a run ended.

    Args:
        codes: of each; a signal is negative.
        output: what each printed.
        seconds: of each, from the start of all to its end.
        cpu: seconds of the processor that all took together.
    """

    codes: list[int]
    output: list[str]
    seconds: list[float]
    cpu: float

    @property
    def good(self) -> bool:
        return not any(self.codes)


def import_all() -> None:
    """What every run needs, once, before the first fork."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a process that is forked cannot use CUDA
    import accelerate
    import bitsandbytes
    import deepspeed
    import transformers.trainer
    from sklearn import metrics

    import deepmlf_llm.training.run as run

    assert all((accelerate, bitsandbytes, deepspeed, transformers, metrics, run))


def import_like(names: Sequence[str]) -> None:
    """Imports what a run has imported on its way, so that the next one finds it there."""
    for name in names:
        if name not in sys.modules and name.partition(".")[0] in _HEAVY:
            with suppress(Exception):
                importlib.import_module(name)


def words_of(settings: Mapping[str, Any]) -> list[str]:
    """Settings as a command line."""
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def run(
    words: Sequence[str],
    processes: int = 1,
    timeout: float = 240,
    kill_others: bool = True,
    folder: Path | None = None,
    send: tuple[float, int | None, int] | None = None,
) -> Ended:
    """``deepmlf train`` with these words, on so many processes of this machine.

    Args:
        words: the command line.
        processes: one: as plain ``python`` starts it.
        timeout: seconds until all are killed.
        kill_others: end them where one has failed, after :data:`GRACE`.
        folder: where they work; default: here.
        send: after so many seconds, to this process (None: all), this signal.
    """
    port, began = free_port(), time.monotonic()
    logs = [tempfile.TemporaryFile("w+", errors="replace") for _ in range(processes)]  # noqa: SIM115 - closed below
    running = {_fork(words, rank, processes, port, log, folder): rank for rank, log in enumerate(logs)}
    codes, seconds, cpu, failed_at = [0] * processes, [0.0] * processes, 0.0, None
    while running:
        pid, status, used = os.wait4(-1, os.WNOHANG)
        now = time.monotonic()
        if pid in running:
            rank = running.pop(pid)
            cpu += used.ru_utime + used.ru_stime
            codes[rank], seconds[rank] = os.waitstatus_to_exitcode(status), now - began
            failed_at = now if failed_at is None and codes[rank] and kill_others else failed_at
        elif now - began > timeout or (failed_at is not None and now - failed_at > GRACE):
            for other in running:
                os.kill(other, signal.SIGKILL)
        else:
            if send is not None and now - began > send[0]:
                for other, rank in running.items():
                    if send[1] in (None, rank):
                        os.kill(other, send[2])
                send = None
            time.sleep(0.02)
    output = []
    for log in logs:
        log.seek(0)
        text, _, names = log.read().partition(_IMPORTED)
        output.append(text)
        log.close()
        import_like(names.split())
    return Ended(codes, output, seconds, cpu)


def _fork(words: Sequence[str], rank: int, processes: int, port: int, log: Any, folder: Path | None) -> int:
    """A process of the run; returns its id, in the parent."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
        if folder is not None:
            os.chdir(folder)
        sys.argv = ["train_llama.py", *words]
        if processes > 1:
            os.environ.update(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(processes),
                LOCAL_WORLD_SIZE=str(processes),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
                TORCHELASTIC_RUN_ID="forked",
            )
        code = run_recipe(lambda: train.main(list(words)))  # type: ignore[func-returns-value]
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
            os.write(log.fileno(), (_IMPORTED + "\n".join(sorted(sys.modules))).encode())
        os._exit(code)
