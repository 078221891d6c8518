"""What a text cache takes: memory, and time of each step."""

from __future__ import annotations

import tempfile
from typing import Any

from measuring import Clock, summary
from precision import STORAGES
from variants import OurLoop

from deepmlf_llm.backbones.text_cache import TextCache


def cache_facts(loop: OurLoop, clock: Clock) -> dict[str, Any]:
    """Size of a loop's text cache, and what putting its batches together takes of the steps that ``clock`` timed."""
    cache = loop.model.text_cache
    share = sum(loop.assembling.seconds) / sum(clock.seconds)
    return {"bytes": cache.nbytes, "texts": len(cache), "share_of_step": share}


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
