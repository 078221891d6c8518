"""What the planner says of a step's memory against what a step takes: the table of docs/planner.md.

    python scripts/validate_plan.py --output FILE.json [--only WORD ..] [--minutes M] [--device cuda]
    python scripts/validate_plan.py --output FILE.json --table [--peak_tflops N]

Measured on the CPU: the bytes that PyTorch's allocator has given out and not got back, event by event (the profiler's
``profile_memory``), over a whole step with its optimizer, beside the tensors that were there before. On a GPU: what its
allocator says that tensors took at most (``torch.cuda.max_memory_allocated``), of larger models with random weights. A
file that is there is gone on with. ``--table`` prints what has been measured and measures nothing; with the rate that
matrix products reached on that GPU, seconds too.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from deepmlf_llm.backbones import load_base_model
from deepmlf_llm.backbones.quantization import is_bitsandbytes
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.files import write_aside
from deepmlf_llm.model.peft_model import DeepMLFModel
from deepmlf_llm.planning.dry_step import DryModel, Step, StepBytes
from deepmlf_llm.planning.flops import StepGeometry, step_flops
from deepmlf_llm.planning.geometries import GEOMETRIES, planned_shape
from deepmlf_llm.planning.live_bytes import module_tensors, storage_bytes
from deepmlf_llm.planning.packed import packed_linears
from deepmlf_llm.planning.rates import step_seconds
from deepmlf_llm.training.planned import CUDA_BLOCK

DIMS = {"audio": 74, "vision": 35}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
JOINT, FUSION = {"ffw_scope": "joint"}, {"ffw_scope": "fusion"}
LM_LOSS = {"ffw_scope": "joint", "objective": {"gamma": 1.0}}


def _case(base: str, layers: int, method: dict[str, Any], **step: Any) -> dict[str, Any]:
    return {"base": base, "layers": layers, "method": {"fusion_layers": "even:2", **method}, **step}


def cases() -> dict[str, dict[str, Any]]:
    """Name -> one configuration; each takes seconds."""
    toy, small = ("tiny-llama", 4), ("smollm2-135m", 3)
    found: dict[str, dict[str, Any]] = {}
    for word, base in (("toy", toy), ("smollm2", small)):
        plain = {
            "joint": _case(*base, JOINT),
            "fusion": _case(*base, FUSION),
            "fusion-cached": _case(*base, FUSION, cached=True),
            "joint-cached": _case(*base, JOINT, cached=True),
            "joint-checkpointing": _case(*base, JOINT, checkpointing=True),
            "joint-bf16": _case(*base, JOINT, dtype="bfloat16"),
            "fusion-bf16": _case(*base, FUSION, dtype="bfloat16"),
            "joint-nf4": _case(*base, JOINT, quantization="nf4"),
            "fusion-nf4": _case(*base, FUSION, quantization="nf4"),
            "joint-batch-16": _case(*base, JOINT, batch=16),
            "joint-text-96": _case(*base, JOINT, text=96),
            "joint-text-160": _case(*base, JOINT, text=160),
            "joint-frames-400": _case(*base, JOINT, frames=400),
            "joint-lm-loss": _case(*base, LM_LOSS),
            "joint-lora": _case(*base, {**JOINT, "r": 8}),
            "lora-checkpointing": _case(*base, {**JOINT, "r": 8}, checkpointing=True),
            "joint-copy": _case(*base, {**JOINT, "ffw_weights": "copy"}),
            "fusion-batch-16": _case(*base, FUSION, batch=16),
            "fusion-32-tokens": _case(*base, {**FUSION, "num_fusion_tokens": 32}),
            "joint-first-block": _case(*base, {**JOINT, "fusion_entry": "first_block"}),
            "joint-every-layer": _case(*base, {**JOINT, "fusion_layers": "from:0"}),
            "joint-eager": _case(*base, JOINT, kernel="eager"),
            "text-alone": _case(*base, {**JOINT, "modalities": {}}),
        }
        found |= {f"{word}-{name}": case for name, case in plain.items()}
    found["gpt2-joint"] = _case("tiny-gpt2", 4, JOINT)
    found["mistral-fusion"] = _case("tiny-mistral", 4, FUSION)
    found["smollm2-whole-fusion"] = {
        **_case("smollm2-135m", 30, FUSION),
        "method": {**FUSION, "fusion_layers": "even:7"},
    }
    found["smollm2-whole-joint"] = {**_case("smollm2-135m", 30, JOINT), "method": {**JOINT, "fusion_layers": "even:7"}}
    return found


def gpu_cases() -> dict[str, dict[str, Any]]:
    """Name -> one configuration of LLaMA-1B's or 8B's geometry, for a GPU of 80 GB."""
    small, large = ("llama-1b", 16), ("llama-8b", 32)
    plain = {"dtype": "bfloat16", "kernel": "sdpa", "batch": 32, "frames": 50}
    seven = {"fusion_layers": "even:7"}
    return {
        "llama-1b-joint": _case(*small, {**JOINT, **seven}, **plain),
        "llama-1b-fusion-cached": _case(*small, {**FUSION, **seven}, cached=True, **plain),
        "llama-8b-fusion": _case(*large, {**FUSION, **seven}, **plain),
        "llama-8b-joint-checkpointing": _case(*large, {**JOINT, **seven}, checkpointing=True, **plain),
        "llama-8b-joint-nf4": _case(*large, {**JOINT, **seven}, quantization="nf4", **plain),
        "llama-8b-fusion-nf4": _case(*large, {**FUSION, **seven}, quantization="nf4", **plain),
    }


def config_of(case: dict[str, Any]) -> DeepMLFConfig:
    return DeepMLFConfig(**{"modalities": {name: {"dim": dim} for name, dim in DIMS.items()}, **case["method"]})


def lengths_of(case: dict[str, Any]) -> list[int]:
    """Real tokens of each text: from the longest down to half of it."""
    longest, batch = case.get("text", 40), case.get("batch", 8)
    return [longest - (row * longest) // (2 * batch) for row in range(batch)]


def predicted(case: dict[str, Any], granule: int = 1) -> dict[str, int]:
    """Bytes of weights, optimizer and the step's peak, without loading or computing anything.

    Args:
        case: one of :func:`cases`.
        granule: the allocator's smallest block, bytes.
    """
    _, _, found = dry_step(case, granule)
    total = found.weights + found.batch + 2 * found.trained + found.peak
    return {"predicted": total, "predicted_step": found.peak, "predicted_weights": found.weights}


def dry_step(case: dict[str, Any], granule: int = 1) -> tuple[DeepMLFModel, Step, StepBytes]:
    """The case's model without weights, its step, and what that takes."""
    dtype, kind = DTYPES[case.get("dtype", "float32")], case.get("quantization", "none")
    shape = planned_shape(case["base"], case["layers"])
    shape.set_attn_implementation(kernel_of(case))
    with torch.device("meta"):
        model = DeepMLFModel(shape, config_of(case))
    lengths = lengths_of(case)
    step = Step(
        utterances=len(lengths),
        text_tokens=max(lengths),
        frames=dict.fromkeys(model.deepmlf_config.modalities, case.get("frames", 60)),
        checkpointing=case.get("checkpointing", False),
        text_cached=case.get("cached", False),
        real=(sum(lengths) - len(lengths)) / (len(lengths) * (max(lengths) - 1)),
        granule=granule,
    )
    return model, step, DryModel(model, dtype, kind).run(step)


def seconds_table(rows: dict[str, dict[str, Any]], tflops: float) -> str:
    """Markdown: seconds of a step on a GPU, expected with its measured rate of matrix products."""
    lines = ["| configuration | expected (low .. high) s | measured s | error |", "|---|---|---|---|"]
    for name, row in rows.items():
        case = row["case"]
        model, step, found = dry_step(case, CUDA_BLOCK)
        lm = model.fused_decoder.decoder.lm
        packed = len(packed_linears(lm, lm.get_output_embeddings())) if "quantization" in case else 0
        geometry = StepGeometry(step.utterances, step.text_tokens, step.frames)
        flops = step_flops(model, geometry, step.text_cached)
        told = step_seconds(flops, found.operators, tflops, 1, step.checkpointing, packed)
        expected = f"{told.expected:.3f} ({told.low:.3f} .. {told.high:.3f})"
        lines.append(f"| {name} | {expected} | {row['seconds']:.3f} | {told.expected / row['seconds'] - 1:+.0%} |")
    return "\n".join(lines)


def kernel_of(case: dict[str, Any]) -> str:
    return case.get("kernel", "eager" if case.get("dtype") == "bfloat16" else "sdpa")


def held_tensors(model: Any) -> list[torch.Tensor]:
    """Weights, and what bitsandbytes keeps beside them."""
    held = module_tensors(model)
    for module in model.modules():
        state: Any = module.weight.quant_state if is_bitsandbytes(module) else None
        while state is not None:
            held += [t for t in (state.absmax, state.code, state.offset) if isinstance(t, torch.Tensor)]
            state = state.state2
    return held


def random_base(case: dict[str, Any], device: str) -> Any:
    """A base of the case's geometry with random weights, made on the device."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
    from gpu import random_llama

    sizes = {**GEOMETRIES[case["base"]][1], "num_hidden_layers": case["layers"]}
    lm = random_llama(sizes, "nf4" if case.get("quantization") == "nf4" else case["dtype"], device)
    lm.set_attn_implementation(kernel_of(case))
    return lm


def measured(case: dict[str, Any], device: str = "cpu") -> dict[str, Any]:
    """Bytes at the peak of a real third step, and the seconds of the second."""
    torch.manual_seed(0)
    gc.collect()  # of the case before, which hooks may still hold
    others = torch.cuda.memory_allocated() if device != "cpu" else 0
    dtype, kind = case.get("dtype", "float32"), case.get("quantization", "none")
    if device == "cpu":
        base = load_base_model(case["base"], kind, dtype, kernel_of(case), num_layers=case["layers"])
    else:
        base = random_base(case, device)
    model = DeepMLFModel(base, config_of(case)).to(device)
    if case.get("checkpointing"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_text_cache("memory" if case.get("cached") else "none")
    model.train()
    lengths = lengths_of(case)
    batch: dict[str, torch.Tensor] = {"labels": torch.randn(len(lengths))}
    batch["input_ids"] = torch.randint(3, 250, (len(lengths), max(lengths)))
    batch["attention_mask"] = torch.stack([(torch.arange(max(lengths)) >= max(lengths) - n).long() for n in lengths])
    for name in model.deepmlf_config.modalities:
        batch[name] = torch.randn(len(lengths), case.get("frames", 60), DIMS[name])
        batch[f"{name}_mask"] = torch.ones(len(lengths), case.get("frames", 60), dtype=torch.bool)
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

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


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| configuration | predicted MB | measured MB | error | of the step alone |", "|---|---|---|---|---|"]
    whole, alone = [], []
    for name, row in rows.items():
        whole.append(row["predicted"] / row["measured"] - 1)
        alone.append(row["predicted_step"] / row["measured_step"] - 1)
        sizes = f"{row['predicted'] / 1e6:.2f} | {row['measured'] / 1e6:.2f}"
        lines.append(f"| {name} | {sizes} | {whole[-1]:+.1%} | {alone[-1]:+.1%} |")
    if rows:
        worst = [f"{max(map(abs, errors)):.1%}" for errors in (whole, alone)]
        mean = [f"{sum(map(abs, errors)) / len(errors):.1%}" for errors in (whole, alone)]
        lines.append(f"| **mean of {len(rows)}, without sign** | | | {mean[0]} | {mean[1]} |")
        lines.append(f"| **largest** | | | {worst[0]} | {worst[1]} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[""], help="cases whose name holds one of these words")
    parser.add_argument("--minutes", type=float, default=60.0, help="no case begins after these")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--peak_tflops", type=float, help="with --table, of a file measured on a GPU: seconds too")
    options = parser.parse_args()
    rows = json.loads(options.output.read_text()) if options.output.exists() else {}
    began = time.monotonic()
    on_cpu = options.device == "cpu"
    for name, case in (cases() if on_cpu else gpu_cases()).items() if not options.table else ():
        wanted = name not in rows and any(word in name for word in options.only)
        if wanted and time.monotonic() - began < 60 * options.minutes:
            found = predicted(case, 1 if on_cpu else CUDA_BLOCK)
            rows[name] = {"case": case, **found, **measured(case, options.device)}
            write_aside(options.output, json.dumps(rows, indent=1) + "\n")
            print(f"{name}: {rows[name]['predicted_step'] / rows[name]['measured_step'] - 1:+.1%}", flush=True)
    print(table(rows))
    if options.peak_tflops:
        print(f"\n{seconds_table(rows, options.peak_tflops)}")


if __name__ == "__main__":
    main()
