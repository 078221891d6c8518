"""One step of a case in a process of its own: resident memory and seconds. Started by ``validate_plan.py``.

    python scripts/planner_process.py '{"base": "tiny-llama", ..}' STEPS     one case
    python scripts/planner_process.py machine                                what this machine's CPU does

Prints one JSON object. Memory is what Linux counts (``/proc/self/status``): ``VmHWM``, the largest resident set, is set
back before the steps, so that they and the loading of the base are seen apart.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

MACHINE = "machine"


def in_own_process(word: str, steps: int = 0) -> dict[str, Any]:
    """What such a process prints, under the environment of this one."""
    command = [sys.executable, str(Path(__file__).resolve()), word, str(steps)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, "PYTHONWARNINGS": "ignore"}
    )
    if done.returncode:
        raise RuntimeError(f"{word}: exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def case_in_process(case: dict[str, Any], steps: int) -> dict[str, Any]:
    """Runs here and nowhere else: it imports what a run imports, loads the base, and makes steps."""
    import torch

    import deepmlf_llm.training.run  # noqa: F401 - what a run has imported counts
    from deepmlf_llm.planning.resident import resident_bytes
    from scripts.planner_cases import real_model, real_step

    imported = resident_bytes()
    torch.manual_seed(0)
    model, batch = real_model(case)
    loaded = resident_bytes()
    step, _ = real_step(model, batch)
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back
    seconds, cpu = [], []
    for _ in range(steps):
        began, used = time.perf_counter(), time.process_time()
        step()
        seconds.append(time.perf_counter() - began)
        cpu.append(time.process_time() - used)
    stepped = resident_bytes()
    return {
        "imported": imported.now,
        "loading_peak": loaded.peak,
        "loaded": loaded.now,
        "stepping_peak": stepped.peak,
        "peak": max(loaded.peak, stepped.peak),
        "seconds": statistics.median(seconds[1:]),
        "cpu_seconds": statistics.median(cpu[1:]),
        "all_seconds": seconds,
    }


def predicted_process(case: dict[str, Any], machine: dict[str, Any]) -> dict[str, Any]:
    """What the planner says of the same: resident bytes, while loading and in all, and seconds of a step.

    Args:
        case: one of :func:`~scripts.planner_cases.process_cases`.
        machine: what :func:`machine` found.
    """
    from deepmlf_llm.planning.cpu_rates import CpuRates, step_seconds_on_cpu
    from deepmlf_llm.planning.memory import Gathered, Layout, memory_rows
    from deepmlf_llm.planning.resident import Host
    from scripts.planner_cases import dry_step, loading

    rates = CpuRates(**machine["rates"])
    model, _, found = dry_step(case, notes_work=True)
    tensors = memory_rows(found, Layout(1), model.fused_decoder.decoder.width, Gathered(0, 0, 0), context=False)
    host = Host(rates.imported, rates.process, lambda _: loading(case))
    rows = host.rows(tensors, case.get("quantization", "none"))
    total = rows["total"]
    return {
        "tensors": tensors["total"].expected,
        "predicted_peak": [total.low, total.expected, total.high],
        "predicted_stepping": sum(
            part.expected for name, part in rows.items() if name not in ("total", "while loading")
        ),
        "predicted_seconds": step_seconds_on_cpu(found.work, found.trained, rates).expected,
    }


def machine() -> dict[str, Any]:
    """Its rates, the process without a model, and versions."""
    import deepmlf_llm.training.run  # noqa: F401
    from deepmlf_llm.planning.cpu_rates import measure_cpu
    from deepmlf_llm.training.environment import environment

    return {"rates": measure_cpu().as_dict(), "environment": environment()}


if __name__ == "__main__":
    word = sys.argv[1]
    print(json.dumps(machine() if word == MACHINE else case_in_process(json.loads(word), int(sys.argv[2]))))
