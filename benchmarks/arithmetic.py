"""How much of a step is arithmetic that no code can leave out: its matrix products, and how fast this CPU does such."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from measuring import Clock, seconds_of, summary
from torch.utils.flop_counter import FlopCounterMode
from variants import SHARED_TEXT

from deepmlf_llm.backbones.text_cache import BATCH_TOKENS, TextCache


def flops(run: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products in ``run``: backward passes and recomputation included, what a
    fused attention kernel does inside not (a few per cent at most, here)."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def matmul_rate(rows: int, width: int, columns: int, dtype: torch.dtype, repeats: int = 100) -> float:
    """FLOP/s of [rows x width] @ [width x columns] on this CPU, the fastest of five goes."""
    a, b = torch.randn(rows, width).to(dtype), torch.randn(columns, width).to(dtype).t()
    return 2 * rows * width * columns / seconds_of(partial(torch.mm, a, b), repeats)


def count_arithmetic(loops: Mapping[str, Any], index: int) -> dict[str, Any]:
    """FLOPs of a training step on batch ``index`` and of its predictions; the matmul rate here.

    The rate is that of the LM's up projection for all fusion tokens of a batch. Predictions are for texts met before.
    """
    training, yardstick = {name: flops(partial(loop.step, index)) for name, loop in loops.items()}, loops["yardstick"]
    inference = {"yardstick": flops(yardstick.predict)}
    for name in (name for name in SHARED_TEXT if name in loops):
        loops[name].model.enable_text_cache("memory", fusion_tokens=True)
        for _ in range(2):
            loops[name].predict(index)
        inference[SHARED_TEXT[name]] = flops(partial(loops[name].predict, index))
    config = yardstick.model.lm.config
    sizes = (yardstick.batches.batch * yardstick.model.num_tokens, config.hidden_size, config.intermediate_size)
    rates = {name: matmul_rate(*sizes, getattr(torch, name)) for name in ("float32", "bfloat16")}
    return {"training": training, "inference": inference, "matmul_rate": rates}


def measure_building(loop: Any, texts: list[list[int]]) -> dict[str, float]:
    """Reading texts into an empty cache: FLOP/s, and their share of the rate of the LM's up projection for a batch of
    them, in the dtype of its projections."""
    own, seen = loop.model.text_cache, []
    config = own.decoder.lm.config

    def build() -> None:
        TextCache(own.decoder, own.depth, storage=own.storage, lowest=own.lowest).add(texts)

    up = own.decoder.ffw_parts(0).up
    handle = up.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    counted, clock = flops(build), Clock()
    handle.remove()
    rates = []
    for _ in range(3):
        rates.append(matmul_rate(BATCH_TOKENS, config.hidden_size, config.intermediate_size, seen[0], repeats=10))
        with clock:
            build()
    rate = counted / summary(clock.seconds)["median"]
    return {"flop_per_second": rate, "share_of_matmul_rate": rate / summary(rates)["median"], "texts": len(texts)}
