"""How much of a step is arithmetic that no code can leave out: its matrix products, and how fast this CPU does such."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from measuring import Clock, print_markdown
from published_layout import PublishedLoop
from torch.utils.flop_counter import FlopCounterMode
from variants import SHARED_TEXT, OurLoop


def flops(run: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products in ``run``: backward passes and recomputation included, what a
    fused attention kernel does inside not (a few per cent at most, here)."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def matmul_rate(rows: int, width: int, columns: int, dtype: torch.dtype, repeats: int = 100) -> float:
    """FLOP/s of [rows x width] @ [width x columns] on this CPU, the fastest of five goes."""
    a, b = torch.randn(rows, width).to(dtype), torch.randn(columns, width).to(dtype).t()
    clock = Clock()
    for timed in (False, *[True] * 5):
        with clock if timed else Clock():
            for _ in range(repeats):
                a @ b
    return 2 * rows * width * columns * repeats / min(clock.seconds)


def count_arithmetic(yardstick: PublishedLoop, ours: Mapping[str, OurLoop]) -> dict[str, Any]:
    """FLOPs of a training step and of a batch's predictions, ours averaged over a pass, and this machine's matmul rate.

    The rate is that of the LM's up projection for all fusion tokens of a batch. Predictions are for texts met before.
    """
    training = {"yardstick": flops(yardstick.step)}
    inference = {"yardstick": flops(yardstick.predict)}
    for name, loop in ours.items():
        training[name] = flops(loop.epoch) // len(loop.batches)
        if name in SHARED_TEXT:
            loop.model.enable_text_cache("memory", fusion_tokens=True)
            loop.predict_epoch()
            inference[SHARED_TEXT[name]] = flops(loop.predict_epoch) // len(loop.batches)
    config = yardstick.model.lm.config
    sizes = (yardstick.batches.batch * yardstick.model.num_tokens, config.hidden_size, config.intermediate_size)
    rates = {name: matmul_rate(*sizes, getattr(torch, name)) for name in ("float32", "bfloat16")}
    return {"training": training, "inference": inference, "matmul_rate": rates}


def show_arithmetic(result: Mapping[str, Any]) -> None:
    """A table: FLOPs, their ratio, and the share of the measured time that they take at the matmul rate."""
    rates, rows = result["arithmetic"]["matmul_rate"], []
    for kind in ("training", "inference"):
        counted, measured = result["arithmetic"][kind], result[kind]
        for name, count in counted.items():
            rate = rates["bfloat16" if name.endswith("_bf16") else "float32"]
            seconds, step = count / rate, measured[name]["step_seconds"]["median"]
            ratio = counted["yardstick"] / count
            row = [f"{kind}, {name}", f"{count / 1e9:.0f}", f"{ratio:.1f}", f"{seconds:.2f}", f"{step:.2f}"]
            rows.append([*row, f"{seconds / step:.0%}"])
    print()
    print_markdown(["arithmetic", "GFLOP", "yardstick / ours", "s at matmul rate", "s measured", "share"], rows)
    print("\nMatmul rate: " + ", ".join(f"{rate / 1e9:.0f} GFLOP/s {name}" for name, rate in rates.items()) + ".")
