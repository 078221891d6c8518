"""Cases of on_gpu.py: decoders up to LLaMA-70B's geometry, every variant on the same batches, MFU and its method.

Weights are random where only size matters (LLaMA 1B, 8B, 70B), so nothing is downloaded. MFU: the floating-point
operations that the method needs (``planning/flops.py``) over those that the device's own bf16 matmul, measured in the
same run, would have done in that time.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from measuring import operations, summary, timed
from published_layout import blocks_after
from variants import YARDSTICKS, OurLoop, make_loop
from workload import Geometry, grouped, make_utterances, representative, with_token_ids

from deepmlf_llm import DeepMLFModel
from deepmlf_llm.backbones import load_base_model, load_tokenizer
from deepmlf_llm.backbones.packing import VARLEN, varlen_kernel
from deepmlf_llm.backbones.random_base import random_weights
from deepmlf_llm.backbones.smollm2 import SMOLLM2, smollm2_available
from deepmlf_llm.backbones.toys import TOYS
from deepmlf_llm.errors import ConfigError
from deepmlf_llm.planning.flops import StepGeometry, step_flops
from deepmlf_llm.planning.geometries import GEOMETRIES, planned_shape

MEASURED = ("yardstick", "joint", "fusion", "fusion_cached", "cached_recipe")


class Case:
    """One base model, one batch size: variants on the same base and the same batches.

    Args:
        spec: ``model[@layers]:kind:batch``, e.g. ``"llama-8b:nf4:8"``; ``@layers`` takes the lowest ones only, of a
            model that does not fit whole.
        device: where.
        batches: of an epoch's length-grouped batches, how many.
        utterances: of the epoch.

    Raises:
        ConfigError: no such model, kind or batch.
    """

    def __init__(self, spec: str, device: str, batches: int = 3, utterances: int = 320) -> None:
        named, kind, batch = (*spec.split(":"), "", "")[:3]
        name, _, layers = named.partition("@")
        known = (*GEOMETRIES, *TOYS)
        if name not in known or kind not in ("nf4", "bfloat16", "float32") or not batch.isdigit() or int(batch) < 2:
            raise ConfigError(
                f"case {spec!r}: expected MODEL[@LAYERS]:KIND:BATCH, models {', '.join(known)}, kinds nf4, bfloat16, "
                "float32"
            )
        self.name, self.kind, self.batch, self.device = name, kind, int(batch), device
        self.layers = int(layers) if layers else None
        self.geometry = Geometry()
        self.tokenizer = load_tokenizer(SMOLLM2 if smollm2_available() and name not in TOYS else "tiny-llama")
        drawn = with_token_ids(make_utterances(utterances, self.geometry), self.tokenizer, self.geometry.max_tokens)
        epoch = grouped(drawn, self.batch)
        self.batches, self.longest = representative(epoch, min(batches, len(epoch))), epoch[-1]

    def base(self) -> Any:
        if self.name == SMOLLM2 and self.kind != "nf4" and smollm2_available():
            lm = load_base_model(SMOLLM2, dtype=self.kind).to(self.device)
        else:
            lm = random_weights(planned_shape(self.name, self.layers), self.kind, self.device)
        if varlen_kernel() is not None and self.kind != "float32" and self.device != "cpu":
            lm.set_attn_implementation(VARLEN)  # rows that come padded, as the yardstick's, go to sdpa all the same
        return lm

    def loop(self, name: str, lm: Any) -> Any:
        """The yardstick, or one of the variants, whose last batch is the epoch's longest."""
        batches = self.batches if name in YARDSTICKS else [*self.batches, self.longest]
        return make_loop(name, lm, self.tokenizer, batches, self.geometry)

    def measure(self, lm: Any, name: str, rounds: int, peak_flops: float | None) -> dict[str, Any]:
        """One variant's figures: ``rounds`` passes over the batches; the peak is of the epoch's longest batch too."""
        on_cuda = self.device != "cpu"
        if on_cuda:
            torch.cuda.reset_peak_memory_stats()
        loop, ours = self.loop(name, lm), name not in YARDSTICKS
        steps = range(len(self.batches) if ours else 1)  # batches of the yardstick are all alike
        loop.step(-1)
        passes = timed(lambda: [loop.step(index) for index in steps], rounds)
        samples = summary([len(steps) * self.batch / seconds for seconds in passes])
        facts: dict[str, Any] = {"samples_per_second": samples}
        facts |= {"peak_bytes": torch.cuda.max_memory_allocated()} if on_cuda else {}
        if ours and peak_flops:
            utterances = [utterance for batch in self.batches for utterance in batch]
            needed = self.needed_flops(loop, utterances)
            facts["mfu"] = needed / len(utterances) * samples["median"] / peak_flops
        facts["operators"] = operations(partial(loop.step, len(self.batches) // 2))
        if ours:
            loop.model.eject()
        return facts

    def needed_flops(self, loop: OurLoop, utterances: Sequence[Mapping[str, Any]]) -> int:
        """Of a training step on them, padding and recomputation left out; counted on the shape, which 4 bits hide."""
        with torch.device("meta"):
            model = DeepMLFModel(planned_shape(self.name, self.layers), loop.model.deepmlf_config)
        each = [
            StepGeometry(1, len(u["input_ids"]), {name: len(u[name]) for name in self.geometry.modalities})
            for u in utterances
        ]
        return sum(step_flops(model, geometry, loop.cached) for geometry in each)


def measure_case(
    spec: str, device: str, rounds: int = 3, peak_flops: float | None = None, variants: Sequence[str] = MEASURED
) -> dict[str, Any]:
    """Variants of a case; one that does not fit says so instead of figures. The yardstick has no 4-bit form."""
    case = Case(spec, device)
    lm = case.base()
    result: dict[str, Any] = {"mm_blocks_after": blocks_after(lm.config.num_hidden_layers), "variants": {}}
    if case.layers:
        whole = planned_shape(case.name).config.num_hidden_layers
        result["scaled"] = (
            f"{case.layers} of {whole} layers ran; of all of them expect {case.layers / whole:.3f} of the samples/s"
        )
    for variant in variants if case.kind != "nf4" else variants[1:]:
        try:
            result["variants"][variant] = case.measure(lm, variant, rounds, peak_flops)
        except torch.OutOfMemoryError:
            result["variants"][variant] = {"does_not_fit": True}
            lm = None  # with whatever hooks the variant has left in it
            gc.collect()
            torch.cuda.empty_cache()
            lm = case.base()
        gc.collect()
    return result
