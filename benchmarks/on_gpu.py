"""Everything that has waited for a GPU, in one call under nine minutes: each step in a process of its own, its result
written as it ends, so that a run that is cut loses nothing and a step that fails costs only itself.

    python benchmarks/on_gpu.py --output FILE.json [--steps ceilings tests ..] [--minutes 9] [--device cpu --tiny]

A step whose package is missing says so. On a CPU (``--device cpu``) what needs CUDA says so too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gpu import Case, measure_case
from measuring import benchmark_parser, environment, in_own_process, seconds_of, summary, timed, use_threads, write_json
from variants import make_loop

from deepmlf_llm.backbones.random_base import random_nf4_linear
from deepmlf_llm.backbones.smollm2 import smollm2_available
from deepmlf_llm.commands.shell import run_recipe
from deepmlf_llm.errors import RunError
from deepmlf_llm.extras import installed

REPOSITORY = Path(__file__).resolve().parents[1]
NO_TIME = 12.0  # seconds: with less left no step begins


@dataclass(frozen=True)
class Where:
    """The device, whether sizes are toys, and what the ceilings step has found."""

    device: str
    tiny: bool
    peak_flops: float | None = None


def ceilings(where: Where) -> dict[str, Any]:
    """What this device does at best: bf16 and fp32 matmul (FLOP/s), copying (bytes/s, read and written)."""
    size, repeats = (128, 2) if where.tiny else (8192, 20)
    found: dict[str, Any] = {}
    for dtype in (torch.bfloat16, torch.float32):
        a = torch.randn(size, size, device=where.device, dtype=dtype)
        seconds = seconds_of(partial(torch.mm, a, a, out=torch.empty_like(a)), repeats)
        found[f"matmul_flops_{str(dtype).removeprefix('torch.')}"] = 2 * size**3 / seconds
    source = torch.empty(size * size * 4, dtype=torch.uint8, device=where.device)
    found["copy_bytes"] = 2 * source.numel() / seconds_of(partial(torch.empty_like(source).copy_, source), repeats)
    if where.device != "cpu":
        pinned = torch.empty(source.numel(), dtype=torch.uint8, pin_memory=True)
        found["host_to_device_bytes"] = source.numel() / seconds_of(partial(source.copy_, pinned), repeats)
        found["device"], found["device_bytes"] = torch.cuda.get_device_name(), torch.cuda.mem_get_info()[1]
    return found


def tests(where: Where, seconds: float) -> dict[str, Any]:
    """The suite with its models built there, all but the tests that take minutes."""
    options = ["-q", "--no-header", "-p", "no:cacheprovider", "--tb=line"]
    command, there = [sys.executable, "-m", "pytest", *options], {"DEEPMLF_TEST_DEVICE": where.device}
    if installed("xdist"):
        command += ["-n", str(max(1, len(os.sched_getaffinity(0)) - 2)), "--dist", "worksteal"]
    return _run([*command, "-m", "not slow"], seconds, **there)


def four_bit(where: Where) -> dict[str, Any]:
    """bitsandbytes' nf4 kernels: their error against the same weights dequantized, their time against bf16's."""
    from bitsandbytes import functional as bnb

    width, out = (64, 128) if where.tiny else (4096, 14336)
    layer = random_nf4_linear(width, out, torch.bfloat16, where.device)
    weight = bnb.dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(torch.bfloat16)
    result = {}
    for rows in (1, 96, 2048) if not where.tiny else (1, 4):
        x = torch.randn(rows, width, device=where.device, dtype=torch.bfloat16)
        with torch.no_grad():
            expected, found = F.linear(x, weight).float(), layer(x).float()
            times = [seconds_of(partial(f, *args), 10) for f, args in ((layer, (x,)), (F.linear, (x, weight)))]
        error = float((found - expected).norm() / expected.norm())
        result[f"{rows} rows"] = {"relative_error": error, "nf4_ms": times[0] * 1e3, "bf16_ms": times[1] * 1e3}
    return result


def kernels(where: Where) -> dict[str, Any]:
    """Names of the attention kernels that run in a step of each scope, by the profiler; whether one is flash's."""
    case = _small(where)
    result = {}
    for variant in ("joint", "fusion", "fusion_cached"):
        lm = case.base()
        loop = case.loop(variant, lm)
        loop.step(0)
        with torch.profiler.profile() as profiler:
            loop.step(0)
        names = sorted({event.key for event in profiler.key_averages()})
        found = [name for name in names if any(word in name.lower() for word in ("flash", "fmha", "attention"))]
        flash = any("flash" in name.lower() and not name.startswith("aten::") for name in found)
        result[variant] = {"kernel": lm.config._attn_implementation, "flash": flash, "names": found}
    return result


def launches(where: Where) -> dict[str, Any]:
    """A small LM is bound by launches: predictions as they are, compiled, and compiled into CUDA graphs; how many
    kernels are launched, and what share of the time the device is busy."""
    result: dict[str, Any] = {}
    case = _small(where)
    ways: dict[str, dict[str, Any] | None] = {"eager": None}
    if where.device != "cpu":
        ways |= {"compiled": {"dynamic": True}, "cuda graphs": {"mode": "reduce-overhead"}}
    for name, compiled in ways.items():
        lm = case.base()
        lm.set_attn_implementation("sdpa")
        loop = make_loop("fusion_cached", lm, case.tokenizer, [case.batches[0][:2], case.batches[-1]], case.geometry)
        loop.model.enable_text_cache("memory", fusion_tokens=True)
        if compiled is not None:
            lm.get_decoder().compile(**compiled)
        try:
            result[name] = {f"batch of {n}": _busy(partial(loop.predict, i)) for i, n in ((0, 2), (1, case.batch))}
        except Exception as error:  # a compiler that is missing, or what it cannot capture
            result[name] = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    return result


def deepspeed(where: Where, seconds: float) -> dict[str, Any]:
    """Training under DeepSpeed, a few steps on the embedded set; toys where SmolLM2 has not been fetched."""
    whole = ["--text_cache", "none"]  # ZeRO-3 splits the LM, which a text cache needs whole
    ways = {"zero2": [], "zero2 nf4": ["--quantization", "nf4"], "zero3": whole, "zero3_offload": whole}
    base = [] if smollm2_available() else ["--base_model", "tiny-llama"]
    end, found = time.monotonic() + seconds, {}
    for way, more in ways.items():
        with tempfile.TemporaryDirectory() as directory:
            stage = ["--ds", f"ds_configs/{way.split()[0]}.json", *more, *base]
            command = [sys.executable, "recipes/train_llama.py", "--max_steps", "12", *stage]
            found[way] = _run([*command, "--output_dir", f"{directory}/run"], max(1.0, end - time.monotonic()))
    return found


def planner(where: Where, seconds: float) -> dict[str, Any]:
    """What the planner says of a step's memory against what it takes here."""
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "planner.json"
        minutes = ["--minutes", f"{seconds / 60:.2f}"]
        command = [sys.executable, "scripts/validate_plan.py", "--device", where.device, *minutes]
        done = _run([*command, "--output", str(output)], seconds)
        return {**done, "rows": json.loads(output.read_text())["rows"] if output.exists() else {}}


def case_of(spec: str, where: Where) -> dict[str, Any]:
    return measure_case(spec, where.device, 1 if where.tiny else 3, where.peak_flops)


CASES = (
    "smollm2-135m:bfloat16:32", "llama-1b:bfloat16:32", "llama-8b:nf4:32", "llama-8b:bfloat16:32",
    "llama-70b@8:bfloat16:8", "llama-70b:nf4:8",
)  # fmt: skip
STEPS: dict[str, Callable[..., dict[str, Any]]] = {
    step.__name__: step for step in (ceilings, tests, four_bit, kernels, launches, deepspeed, planner)
} | {spec: partial(case_of, spec) for spec in CASES}
MOST_SECONDS = 100.0  # of one step: what takes longer must not eat the others' time
LONGER = {"tests": 180.0, "deepspeed": 160.0}  # seconds: steps that start several commands
PACKAGES = {"four_bit": "bitsandbytes", "deepspeed": "deepspeed", "tests": "pytest"}
CUDA_ONLY = ("tests", "deepspeed", "planner")


def _small(where: Where) -> Case:
    return Case("tiny-llama:float32:2" if where.tiny else CASES[0], where.device, 2, 12 if where.tiny else 96)


def _busy(run: Callable[[], Any], repeats: int = 7) -> dict[str, Any]:
    """Milliseconds of one call, kernels that it launches, the share of the time that the device computes."""
    middle = summary(timed(run, repeats, warm=3))["median"]
    with torch.profiler.profile() as profiler:
        run()
    events = profiler.key_averages()
    on_device = [event for event in events if event.device_type != torch.autograd.DeviceType.CPU]
    device = sum(event.self_device_time_total for event in on_device) / 1e6
    launched = sum(event.count for event in events if "LaunchKernel" in event.key or "GraphLaunch" in event.key)
    return {"ms": middle * 1e3, "launches": launched, "device_busy": device / middle}


def _run(command: list[str], seconds: float, **variables: str) -> dict[str, Any]:
    """A command's exit code, seconds and last lines."""
    began = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=REPOSITORY, env={**os.environ, **variables}, capture_output=True, text=True, timeout=seconds
        )
        code, said = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        code, said = -1, f"{(error.stdout or b'').decode(errors='replace')}\nran past {seconds:.0f} s"
    return {"exit_code": code, "seconds": time.monotonic() - began, "last_lines": said.splitlines()[-120:]}


def run(names: list[str], where: Where, minutes: float, output: Path | None) -> dict[str, Any]:
    """The steps in order, as many as there is time for; each result is written as it is there."""
    end = time.monotonic() + 60 * minutes
    result: dict[str, Any] = {"where": vars(where), "environment": environment(), "steps": {}}
    for name in names:
        began, left = time.monotonic(), end - time.monotonic()
        try:
            if left < NO_TIME:
                raise RunError(f"not begun: {max(left, 0):.0f} s were left of {minutes:g} minutes")
            if name in CUDA_ONLY and where.device == "cpu":
                found = {"skipped": "needs CUDA"}
            elif name in PACKAGES and not installed(PACKAGES[name]):
                found = {"skipped": f"{PACKAGES[name]} is not installed"}
            elif name in CUDA_ONLY:  # commands of their own, from a process that has not touched the device
                found = STEPS[name](where, min(left, LONGER.get(name, MOST_SECONDS)))
            else:
                step = STEPS.get(name) or partial(case_of, name)
                found = in_own_process(step, where, seconds=min(left, MOST_SECONDS))
        except RunError as error:
            found = {"error": str(error)}
        if name == "ceilings":
            where = Where(where.device, where.tiny, found.get("matmul_flops_bfloat16"))
        result["steps"][name] = {**found, "step_seconds": round(time.monotonic() - began, 1)}
        told = found.get("error") or found.get("skipped") or "done"
        print(f"{name}: {told} ({result['steps'][name]['step_seconds']} s)", flush=True)
        if output:
            write_json(output, result)
    return result


def main() -> int:
    parser = benchmark_parser(__doc__.splitlines()[0], bases=False)
    parser.add_argument("--device", default="cuda", help="where")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to try the command: figures mean nothing")
    parser.add_argument("--steps", nargs="+", help=f"which, or cases; default: {' '.join(STEPS)}")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of them together")
    args = parser.parse_args()
    use_threads(args.threads)
    if args.device != "cpu" and not torch.cuda.is_available():
        print("skipped: these benchmarks need a CUDA device, and torch sees none here.")
        return 0
    toys = [*(name for name in STEPS if name not in CASES), "tiny-llama:float32:4"]
    names = args.steps or (toys if args.tiny else list(STEPS))
    run(names, Where(args.device, args.tiny), args.minutes, args.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
