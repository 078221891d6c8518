"""What a step costs from 1 to 72 billion parameters, by the planner, beside what was measured.

    python scripts/cost_to_70b.py --output benchmarks/results/cost-to-70b.json [--only llama-70b ..] [--minutes M]
    python scripts/cost_to_70b.py --output benchmarks/results/cost-to-70b.json --page docs/scale-study/cost.md

Nothing is loaded or trained: a step of the model's own code runs on tensors without memory (docs/planner.md). A file
that is there is gone on with. ``--page`` writes the page from what is stored, and from the measurements beside it.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from pathlib import Path
from typing import Any

import torch

from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.files import write_aside
from deepmlf_llm.model.peft_model import DeepMLFModel
from deepmlf_llm.planning.advice import Choice, Planner
from deepmlf_llm.planning.dry_step import Step
from deepmlf_llm.planning.flops import StepGeometry, step_flops
from deepmlf_llm.planning.geometries import planned_shape
from deepmlf_llm.planning.memory import GIB, Layout
from deepmlf_llm.planning.packed import packed_linears
from deepmlf_llm.planning.rates import step_seconds

GEOMETRIES = ("llama-1b", "mistral-7b", "llama-8b", "llama-70b", "qwen2.5-72b")
QUANTIZATIONS = ("none", "nf4")
PASSES = {"joint": ("joint", False), "fusion": ("fusion", False), "cached": ("fusion", True)}
LAYOUTS = (Layout(1), Layout(8, 2), Layout(8, 3), Layout(16, 2), Layout(16, 3))
UTTERANCES, TEXT, FRAMES = 32, 40, 50
MEASURED_TFLOPS, DATA_SHEET = 800, 312  # matrix products of the H100 of docs/speed.md; an A100's data sheet
METHOD: dict[str, Any] = {"fusion_layers": "even:7", "num_fusion_tokens": 8, "ffw_lora_r": 16}
DIMS = {"audio": 74, "vision": 35}
CUDA_BLOCK = 512  # bytes
RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
MEASURED, STEPS, ON_CPU = RESULTS / "planner-h100.json", RESULTS / "h100.json", RESULTS / "planner-cpu.json"
_VARIANTS = {"joint": "joint", "fusion": "fusion", "cached": "fusion_cached"}  # as benchmarks/on_gpu.py calls them
_DTYPES = {"none": "bfloat16", "nf4": "nf4"}


def cases() -> list[tuple[str, str, str]]:
    """Geometry, quantization, pass."""
    return [(base, kind, name) for base in GEOMETRIES for kind in QUANTIZATIONS for name in PASSES]


def planned(base: str, kind: str, name: str) -> dict[str, Any]:
    """Memory of a GPU in each layout, and what a step computes."""
    scope, cached = PASSES[name]
    modalities = {modality: {"dim": dim} for modality, dim in DIMS.items()}
    config = DeepMLFConfig(**METHOD, ffw_scope=scope, modalities=modalities)

    def make() -> DeepMLFModel:
        shape = planned_shape(base)
        shape.set_attn_implementation("sdpa")
        with torch.device("meta"):
            return DeepMLFModel(shape, config)

    frames = dict.fromkeys(DIMS, FRAMES)
    step = Step(UTTERANCES, TEXT, frames, autocast=True, text_cached=cached, granule=CUDA_BLOCK)
    planner = Planner(make, torch.bfloat16, step, float("inf"))
    model = make()
    parameters = list(model.parameters())
    flops = step_flops(model, StepGeometry(UTTERANCES, TEXT, frames), cached)
    decoder = model.fused_decoder.decoder
    packed = len(list(packed_linears(decoder.lm, decoder.lm.get_output_embeddings()))) if kind != "none" else 0
    found: dict[str, Any] = {
        "parameters": sum(p.numel() for p in parameters),
        "trained": sum(p.numel() for p in parameters if p.requires_grad),
        "flops": flops,
        "memory": {},
    }
    for layout in LAYOUTS:
        if cached and layout.stage == 3:
            continue  # refused: a text cache needs the whole LM in each process
        choice = Choice(layout, kind, False)
        rows = planner.checked(choice, UTTERANCES)
        total = rows["total"]
        found["memory"][_named(layout)] = {"expected": total.expected, "high": total.high}
    bytes_ = planner.step_bytes(Choice(Layout(1), kind, False), UTTERANCES)
    found["weights"], found["operators"] = bytes_.weights, bytes_.operators
    for rate in (MEASURED_TFLOPS, DATA_SHEET):
        seconds = step_seconds(flops, bytes_.operators, rate, packed_linears=packed)
        found[f"seconds_{rate}"] = {"low": seconds.low, "expected": seconds.expected, "high": seconds.high}
    return found


def _named(layout: Layout) -> str:
    return f"{layout.processes} x {layout.name}"


def page(rows: dict[str, Any], measured: dict[str, Any]) -> str:
    """Markdown."""
    parts = [_LEAD.format(utterances=UTTERANCES, text=TEXT, frames=FRAMES)]
    for base in GEOMETRIES:
        mine = {name: row for name, row in rows.items() if name.startswith(f"{base}:")}
        if mine:
            first = next(iter(mine.values()))
            size, trained = first["parameters"] / 1e9, first["trained"] / 1e6
            heading = f"## {base}: {size:.1f} billion parameters, {trained:,.0f} million of them trained"
            parts.append(f"{heading}\n\n{_table(mine)}")
    parts.append(_beside(measured))
    return "\n\n".join(parts) + "\n"


def _table(rows: dict[str, Any]) -> str:
    layouts = [_named(layout) for layout in LAYOUTS]
    names = ["1 GPU", *layouts[1:]]
    columns = [
        "base, pass",
        "weights GB",
        *(f"{name}, GiB" for name in names),
        "TFLOP a step",
        "s on an H100",
        "s on an A100",
    ]
    lines = [f"| {' | '.join(columns)} |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    for name, row in rows.items():
        _, kind, way = name.split(":")
        memory = [row["memory"].get(layout) for layout in layouts]
        cells = ["bf16" if kind == "none" else kind]
        cells = [f"{cells[0]}, {way}", f"{row['weights'] / 1e9:.1f}"]
        cells += ["" if m is None else f"{m['expected'] / GIB:.1f} .. {m['high'] / GIB:.1f}" for m in memory]
        cells += [f"{row['flops'] / 1e12:.2f}"]
        cells += [_seconds(row[f"seconds_{rate}"]) for rate in (MEASURED_TFLOPS, DATA_SHEET)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _seconds(found: dict[str, float]) -> str:
    return f"{found['expected']:.2f} ({found['low']:.2f} .. {found['high']:.2f})"


def _beside(measured: dict[str, Any]) -> str:
    lines = [
        "| measured on one H100 80GB | planned GB | measured GB | error | measured s |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in measured.items():
        planned, found = row["predicted"] / 1e9, row["measured"] / 1e9
        cells = [name, f"{planned:.2f}", f"{found:.2f}", f"{planned / found - 1:+.1%}", f"{row['seconds']:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return f"## Beside what was measured\n\n{_MEASURED}\n\n" + "\n".join(lines)


def steps_beside(rows: dict[str, Any], steps: dict[str, Any]) -> str:
    """What a whole step takes on an H100, beside the rows of the same base and pass.

    Args:
        rows: planned.
        steps: of ``benchmarks/results/h100.json``.
    """
    lines = ["| on one H100 80GB | planned GB | measured GB | planned s | measured s |", "|---|---:|---:|---:|---:|"]
    for name, row in rows.items():
        base, kind, way = name.split(":")
        found = steps.get(f"{base}:{_DTYPES[kind]}:{UTTERANCES}", {}).get("variants", {}).get(_VARIANTS[way])
        if found:
            memory = row["memory"][_named(LAYOUTS[0])]["expected"] / 1e9
            seconds = UTTERANCES / found["samples_per_second"]["median"]
            cells = [f"{base}, {'bf16' if kind == 'none' else kind}, {way}", f"{memory:.1f}"]
            cells += [f"{found['peak_bytes'] / 1e9:.1f}", _seconds(row[f"seconds_{MEASURED_TFLOPS}"]), f"{seconds:.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return f"{_STEPS}\n\n" + "\n".join(lines)


def on_cpu_beside(rows: dict[str, Any]) -> str:
    """What steps of SmolLM2-135M take on a CPU.

    Args:
        rows: of ``benchmarks/results/planner-cpu.json``.
    """
    lines = [
        "| SmolLM2-135M on a CPU | planned GB | measured GB | planned s | measured s |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in _ON_CPU_SHOWN:
        row = rows[f"smollm2-whole-{name}"]
        memory = f"{row['predicted_peak'][1] / 1e9:.2f} | {row['peak'] / 1e9:.2f}"
        lines.append(f"| {name} | {memory} | {row['predicted_seconds']:.2f} | {row['seconds']:.2f} |")
    return f"{_ON_CPU}\n\n" + "\n".join(lines)


_LEAD = """# The way to seventy billion: what a step costs

Made by `python scripts/cost_to_70b.py --output benchmarks/results/cost-to-70b.json`; `--page FILE` writes
this page of it. But for the last tables nothing of this was run: it is what the planner says
([planner.md](../planner.md): how it counts, and how good it is).

A step is {utterances} utterances a GPU of {text} text tokens and {frames} frames of audio and of vision, 7 MM
Blocks at even depths, 8 fusion tokens, FFW shared with LoRA of rank 16, bf16 autocast, no activation
checkpointing. "Joint" is the paper's form. In "fusion" the FFWs leave the text alone, and "cached" reads its
stream from a cache, which takes the whole LM in each process, so that there is no ZeRO-3. Memory of one GPU:
expected .. high; it fits where the high one does. Seconds: expected (low .. high), of an H100 whose matrix
products reach 800 TFLOP/s, as that of [speed.md](../speed.md#on-a-gpu) did, and of an A100 by its data sheet
(312); of either a step uses 40 % (55 .. 20). What GPUs say to each other takes no time here.

**What it says.** The frozen weights decide. In bf16 70B takes 145 GB wherever it is whole, so ZeRO-2 does not help:
ZeRO-3 on 8 GPUs of 80 GB holds fusion scope (53 GiB at most), and joint takes 16 (72). In nf4 the same is 43 GB, 39.5
of them the LM's, and fusion scope fits one GPU of 80 GB (69 GiB at most), which joint does not. At 70B fusion scope
saves 41 % of a step's FLOPs, a cached text 82 % (at 1B 49 % and 81 %). Up to 8B launches of operators take longer than
products on an H100, so that these savings do not show in seconds; at 70B they do. Qwen2.5-72B is 1 to 5 % above 70B."""

_MEASURED = """Peak tensors by the planner against PyTorch's allocator, and seconds of a step
(`benchmarks/results/planner-h100.json`). The last row was measured while 3.7 GB of the one before were still
held. Several GPUs have not been tried: rows of ZeRO are sums by its rules."""

_STEPS = """Whole steps of 32 utterances of MOSI's lengths, optimizer included, by [speed.md](../speed.md#on-a-gpu)
(`benchmarks/results/h100.json`). Planned are the rows above: another text length, and .9 GiB for CUDA, which the
allocator's peak does not have. They take 1.4 to 2.0 times the expected seconds, within the range: launches bind
steps of this size, and for the bf16 rows other processes held most of the host's cores. Memory of 8B in nf4 is 7 to
16 % above the expected, and with the .9 GiB for CUDA above the high figure, too: leave room there. Of 70B, 8 of 80
layers have run: 35 GB joint, with 8 utterances and 6 MM Blocks."""

_ON_CPU = """On a CPU, resident memory of the process at its peak and seconds of a step, one core (AVX512-BF16 and AMX);
some of the 59 processes of [planner.md](../planner.md) (`benchmarks/results/planner-cpu.json`), which have settings of
their own:"""
_ON_CPU_SHOWN = ("joint", "fusion", "fusion-cached", "joint-bf16", "fusion-bf16", "joint-checkpointing", "fusion-nf4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="cases whose name has one of these")
    parser.add_argument("--minutes", type=float, default=60.0, help="no case begins later")
    parser.add_argument("--page", type=Path, metavar="FILE.md", help="write the page of what is stored, and stop")
    options = parser.parse_args()
    rows: dict[str, Any] = json.loads(options.output.read_text()) if options.output.is_file() else {}
    if options.page is not None:
        known = {":".join(case): rows[":".join(case)] for case in cases() if ":".join(case) in rows}
        beside = steps_beside(known, json.loads(STEPS.read_text())["steps"])
        measured = json.loads(MEASURED.read_text())["rows"]
        on_cpu = on_cpu_beside(json.loads(ON_CPU.read_text())["rows"])
        write_aside(options.page, f"{page(known, measured)}\n{beside}\n\n{on_cpu}\n")
        return
    began = time.monotonic()
    for case in cases():
        name = ":".join(case)
        chosen = not options.only or any(word in name for word in options.only)
        if name in rows or not chosen or time.monotonic() - began > 60 * options.minutes:
            continue
        start = time.process_time()
        rows[name] = planned(*case)
        gc.collect()
        print(f"{name}: {time.process_time() - start:.0f} CPU s", flush=True)
        write_aside(options.output, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
