"""What the planner says of a run beside what a run takes: the tables of docs/planner.md.

    python scripts/validate_plan.py [--of tensors | process | pairs] [--output FILE.json] [--only WORD ..] [--minutes M]
    python scripts/validate_plan.py --page      writes what was found into docs/planner.md
    python scripts/validate_plan.py --device cuda --output FILE.json
    python scripts/validate_plan.py --table [--peak_tflops N] --output FILE.json

``tensors``: bytes that PyTorch's allocator has given out and not got back, event by event (the profiler's
``profile_memory``), over a whole step with its optimizer, beside the tensors that were there before. On a GPU: what its
allocator says that tensors took at most (``torch.cuda.max_memory_allocated``), of larger models with random weights.
``process``: resident memory and seconds of a step, each case in a process of its own (``planner_process.py``); takes a
machine that does nothing else. ``pairs``: two processes under each stage of ZeRO (``planner_pairs.py``). A file that is
there is gone on with, and what the planner says is said again. ``--table`` prints what has been measured and measures
nothing; with the rate that matrix products reached on that GPU, seconds too.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from deepmlf_llm.backbones.quantization import is_bitsandbytes  # noqa: E402
from deepmlf_llm.files import write_aside  # noqa: E402
from deepmlf_llm.planning.live_bytes import module_tensors, storage_bytes  # noqa: E402
from deepmlf_llm.training.environment import environment, processor  # noqa: E402
from deepmlf_llm.training.planned import CUDA_BLOCK  # noqa: E402
from scripts.planner_cases import cases, dry_step, gpu_cases, process_cases, real_model, real_step  # noqa: E402
from scripts.planner_pairs import measured_pair, pair_cases, predicted_pair, prepared  # noqa: E402
from scripts.planner_process import MACHINE, in_own_process, predicted_process  # noqa: E402
from scripts.planner_tables import pairs_table, process_table, seconds_table, table, write_page  # noqa: E402

FOUND = REPOSITORY / "benchmarks" / "results"
FILES = {
    "tensors": FOUND / "planner.json",
    "process": FOUND / "planner-cpu.json",
    "pairs": FOUND / "planner-pairs.json",
}
TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "tensors": table,
    "process": process_table,
    "pairs": pairs_table,
}
STEPS = 6  # of each timed process; the first does not count


def predicted(case: dict[str, Any], granule: int = 1) -> dict[str, int]:
    """Bytes of weights, optimizer and the step's peak, without loading or computing anything.

    Args:
        case: one of :func:`cases`.
        granule: the allocator's smallest block, bytes.
    """
    _, _, found = dry_step(case, granule)
    total = found.weights + found.batch + 2 * found.trained + found.peak
    return {"predicted": total, "predicted_step": found.peak, "predicted_weights": found.weights}


def held_tensors(model: Any) -> list[torch.Tensor]:
    """Weights, and what bitsandbytes keeps beside them."""
    held = module_tensors(model)
    for module in model.modules():
        state: Any = module.weight.quant_state if is_bitsandbytes(module) else None
        while state is not None:
            held += [t for t in (state.absmax, state.code, state.offset) if isinstance(t, torch.Tensor)]
            state = state.state2
    return held


def measured(case: dict[str, Any], device: str = "cpu") -> dict[str, Any]:
    """Bytes at the peak of a real third step, and the seconds of the second."""
    torch.manual_seed(0)
    gc.collect()  # of the case before, which hooks may still hold
    others = torch.cuda.memory_allocated() if device != "cpu" else 0
    model, batch = real_model(case, device)
    step, optimizer = real_step(model, batch)
    step()
    began = time.perf_counter()
    step()
    if device != "cpu":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    weights = storage_bytes(held_tensors(model))
    if device != "cpu":
        return {**_cuda_peak(step, others), "measured_weights": weights, "seconds": seconds}
    states = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    held = storage_bytes([*held_tensors(model), *batch.values(), *states])
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    now, peak = 0, 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return {
        "measured": held + peak,
        "measured_step": peak,
        "measured_weights": weights,
        "seconds": seconds,
    }


def _cuda_peak(step: Callable[[], None], others: int) -> dict[str, int]:
    """Of one step; ``others``: bytes that were there before the model."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    peak = torch.cuda.max_memory_allocated()
    return {"measured": peak - others, "measured_step": peak - before}


class Results:
    """What is found, row by row, in a file that is there at any moment and gone on with.

    Args:
        path: of the JSON file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def save(self) -> None:
        write_aside(self.path, json.dumps(self.found, indent=1) + "\n")


def validate_tensors(results: Results, wanted: Callable[[str], bool], device: str) -> None:
    """Bytes of tensors of a step in this process."""
    on_cpu = device == "cpu"
    rows = results.found.setdefault("rows", {})
    results.found.setdefault("machine", {"environment": environment(), "cpu": processor()})
    for name, case in (cases() if on_cpu else gpu_cases()).items():
        if name not in rows and wanted(name):
            row = {"case": case, **predicted(case, 1 if on_cpu else CUDA_BLOCK), **measured(case, device)}
            rows[name] = row
            results.save()
            print(f"{name}: {row['predicted_step'] / row['measured_step'] - 1:+.1%}", flush=True)


def validate_processes(results: Results, wanted: Callable[[str], bool]) -> None:
    """Resident memory and seconds: first all that is measured, the machine between; then what the planner says."""
    rows = results.found.setdefault("rows", {})
    among = {name: case for name, case in process_cases().items() if name not in rows and wanted(name)}
    looks = []
    for index, (name, case) in enumerate(among.items()):
        if index % (1 + len(among) // 4) == 0:
            looks.append(in_own_process(MACHINE))
        if wanted(name):
            rows[name] = {"case": case, **in_own_process(json.dumps(case), STEPS)}
            results.save()
            print(f"{name}: {rows[name]['seconds']:.3f} s", flush=True)
    if looks:
        rates = {key: statistics.median_low([look["rates"][key] for look in looks]) for key in looks[0]["rates"]}
        results.found["machine"] = {"environment": looks[0]["environment"], "cpu": processor(), "rates": rates}
        results.save()
        print("measured; what the planner says of it takes minutes", flush=True)
    for row in rows.values():
        row |= predicted_process(row["case"], results.found["machine"])
    results.save()


def validate_pairs(results: Results, wanted: Callable[[str], bool]) -> None:
    """Two processes under each engine: bytes of tensors of the one that takes more."""
    rows = results.found.setdefault("rows", {})
    results.found.setdefault("machine", {"environment": environment(), "cpu": processor()})
    with TemporaryDirectory() as place:
        data = prepared(Path(place) / "data")
        for name, settings in pair_cases().items():
            if name not in rows and wanted(name):
                folder = Path(place) / name
                folder.mkdir()
                one = max(measured_pair(settings, data, folder), key=lambda found: found["measured"])
                rows[name] = {"settings": settings, **one}
                results.save()
                print(f"{name}: {one['measured'] / 1e6:.2f} MB", flush=True)
    for row in rows.values():
        row["predicted"] = predicted_pair(row["settings"], row["shapes"])
    results.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", default="tensors", choices=tuple(FILES), help="what is measured")
    parser.add_argument("--output", type=Path, help="default: the file of benchmarks/results that the page shows")
    parser.add_argument("--only", nargs="*", default=[""], help="cases whose name holds one of these words")
    parser.add_argument("--minutes", type=float, default=60.0, help="no case begins after these")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--table", action="store_true", help="print what has been measured, and measure nothing")
    parser.add_argument("--peak_tflops", type=float, help="with --table, of a file measured on a GPU: seconds too")
    parser.add_argument("--page", action="store_true", help="write the tables of all three files into docs/planner.md")
    options = parser.parse_args()
    if options.page:
        tables = {of: TABLES[of](json.loads(file.read_text())) for of, file in FILES.items() if file.exists()}
        write_page([(f"the table of {of}", table) for of, table in tables.items()])
        return
    results, began = Results(options.output or FILES[options.of]), time.monotonic()

    def wanted(name: str) -> bool:
        return any(word in name for word in options.only) and time.monotonic() - began < 60 * options.minutes

    if not options.table and options.of == "tensors":
        validate_tensors(results, wanted, options.device)
    elif not options.table:
        (validate_processes if options.of == "process" else validate_pairs)(results, wanted)
    print(TABLES[options.of](results.found))
    if options.peak_tflops:
        print(f"\n{seconds_table(results.found, options.peak_tflops)}")


if __name__ == "__main__":
    main()
