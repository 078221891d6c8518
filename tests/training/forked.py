"""Runs of one or several processes on this machine, forked from one that has imported everything: seconds each.

What a launcher does is done here: the environment of each process, and the end of the others where one has failed.
Tests use it (``worlds.py``), and the longer trials of ``scripts/deepspeed_matrix.py`` and ``benchmarks/soak.py``.
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
SMALL = {
    "base_model": "tiny-llama", "batch_size": 8, "max_steps": 4, "fusion_layers": "last:1", "num_fusion_tokens": 2,
    "report_to": "none", "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2,
    "logging_steps": 1, "save_total_limit": "null", "av_encoder.num_layers": 1, "warmup_steps": 0,
    "head_norm": "layer", "av_encoder.dropout": 0,
}  # fmt: skip
"""A run of seconds. BatchNorm and dropout see batches and processes; without them a step is the same in any world."""
TRIAL = {**SMALL, "ffw_scope": "joint", "num_layers": 2}
LIMIT = 240.0  # seconds of a run
GRACE = 30.0  # seconds that the others have when one process has failed, as under torchrun


@dataclass(frozen=True)
class Ended:
    """How the processes of a run ended.

    Args:
        codes: of each; a signal is negative.
        output: what each printed.
        seconds: of each, from the start of all to its end.
    """

    codes: list[int]
    output: list[str]
    seconds: list[float]

    @property
    def good(self) -> bool:
        return not any(self.codes)


def import_all() -> None:
    """What every run needs, once, before the first fork."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a process that is forked cannot use CUDA
    for name in ("accelerate", "bitsandbytes", "deepspeed", "sklearn.metrics", "deepmlf_llm.training.run"):
        importlib.import_module(name)


def prepared(folder: Path) -> Path:
    """A small embedded set, made in a process of its own, so that no thread is left in this one."""
    pid = os.fork()
    if not pid:
        from deepmlf_llm.data.demo import embedded_dataset

        embedded_dataset(folder, sizes=(32, 8, 8))
        os._exit(0)
    os.waitpid(pid, 0)
    return next(folder.rglob("manifest.json")).parent


def run(
    settings: Mapping[str, Any],
    processes: int = 1,
    words: Sequence[str] = (),
    kill_others: bool = True,
    send: tuple[float, int | None, int] | None = None,
) -> Ended:
    """``deepmlf train`` with these settings, on so many processes of this machine; after :data:`LIMIT` all are killed.

    Args:
        settings: of the run.
        processes: one: as plain ``python`` starts it.
        words: more of the command line.
        kill_others: end them where one has failed, after :data:`GRACE`.
        send: after so many seconds, to this process (None: all), this signal.
    """
    command = [*(word for name, value in settings.items() for word in (f"--{name}", str(value))), *words]
    port, began = free_port(), time.monotonic()
    logs = [tempfile.TemporaryFile("w+", errors="replace") for _ in range(processes)]  # noqa: SIM115 - closed below
    running = {_fork(command, rank, processes, port, log): rank for rank, log in enumerate(logs)}
    codes, seconds, failed_at = [0] * processes, [0.0] * processes, None
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        now = time.monotonic()
        if pid in running:
            rank = running.pop(pid)
            codes[rank], seconds[rank] = os.waitstatus_to_exitcode(status), now - began
            failed_at = now if failed_at is None and codes[rank] and kill_others else failed_at
        elif now - began > LIMIT or (failed_at is not None and now - failed_at > GRACE):
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
        for name in names.split():  # what it has imported on its way: the next one finds it there
            if name not in sys.modules and name.partition(".")[0] in _HEAVY:
                with suppress(Exception):
                    importlib.import_module(name)
    return Ended(codes, output, seconds)


def _fork(words: Sequence[str], rank: int, processes: int, port: int, log: Any) -> int:
    """A process of the run; returns its id, in the parent."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
        sys.argv = ["train_llama.py", *words]
        if processes > 1:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "forked"}
            os.environ.update({name: str(value) for name, value in place.items()})
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
