"""What a text cache takes: memory, and time of each step."""

from __future__ import annotations

import tempfile
from typing import Any

from arithmetic import flops, matmul_rate
from measuring import Clock, summary
from precision import STORAGES
from variants import OurLoop

from deepmlf_llm.backbones.text_cache import BATCH_TOKENS, TextCache


def cache_facts(loop: OurLoop, clock: Clock) -> dict[str, Any]:
    """Size of a loop's text cache, and what putting its batches together takes of the steps that ``clock`` timed."""
    cache = loop.model.text_cache
    share = sum(loop.assembling.seconds) / sum(clock.seconds)
    return {"bytes": cache.nbytes, "texts": len(cache), "share_of_step": share}


def measure_building(loop: OurLoop, texts: list[list[int]], storage: str | None = None) -> dict[str, float]:
    """Reading texts into an empty cache: FLOP/s, and their share of the rate of the LM's up projection for a batch of
    them, in the dtype of its projections."""
    own, seen = loop.model.text_cache, []
    config = own.decoder.lm.config

    def build() -> None:
        TextCache(own.decoder, own.depth, storage=storage or own.storage, lowest=own.lowest).add(texts)

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


def measure_assembly(loop: OurLoop, step_seconds: float, rounds: int = 3) -> dict[str, dict[str, float]]:
    """Putting together a batch's text, by place and dtype: seconds (median), their share of a step, bytes of the texts.

    A file that was just written is in the system's page cache: that is what the second epoch finds.

    Args:
        loop: with cached text; its batches are read.
        step_seconds: of a training step with cached text.
    """
    own = loop.model.fused_decoder.cache
    batches = [loop.batch(index) for index in range(len(loop.batches))]
    result = {}
    with tempfile.TemporaryDirectory() as scratch:
        for place, directory in (("memory", None), ("disk", scratch)):
            for storage in ("float32", *STORAGES):
                cache = TextCache(own.decoder, own.depth, directory, storage)
                clock = Clock()
                for timed in (False, *[True] * rounds):
                    for batch in batches:
                        with clock if timed else Clock():
                            cache.read(batch["input_ids"], batch["attention_mask"])
                seconds = summary(clock.seconds)["median"]
                facts = {"seconds": seconds, "share_of_step": seconds / step_seconds, "bytes": cache.nbytes}
                result[f"{place}, {storage}"] = facts
    return result
