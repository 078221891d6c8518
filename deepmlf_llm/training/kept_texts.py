"""The text cache of a run: every text of its splits read once, before training, by all its processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deepmlf_llm.training import launch as launching
from deepmlf_llm.training.launch import Launch, progress_bar, say


def texts_of(splits: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """Token ids of each text of the tokenised splits once, the shortest first."""
    return sorted({tuple(ids) for split in splits.values() for ids in split.input_ids}, key=lambda t: (len(t), t))


def say_size(model: Any, texts: Sequence[tuple[int, ...]], launch: Launch) -> int:
    """Says what the text cache will take; returns the bytes."""
    held: int = model.text_cache.predicted_bytes(texts)
    count = f"{len(texts)} texts, {len(model.text_cache.missing(texts))} of them to be read"
    say(f"text cache ({model.text_cache.kind}): {held / 2**20:.0f} MB for {count}", launch)
    return held


def keep_texts(model: Any, splits: Mapping[str, Any], launch: Launch) -> None:
    """Reads every text once, in one order: what is kept must not depend on where a run was cut. On disk the processes
    share the work and the result; in memory each has all of it."""
    texts = texts_of(splits)
    say_size(model, texts, launch)
    shared = model.text_cache.kind == "disk"
    own = texts[launch.rank :: launch.processes] if shared else texts
    with progress_bar(len(own), "text cache", launch) as progress:
        model.build_text_cache(own, progress)
    launching.wait_for_everyone()
    model.build_text_cache(texts)
