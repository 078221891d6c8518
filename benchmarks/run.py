"""DeepMLF against the published cost profile, on this machine's CPU, in one run: samples a second and peak memory.

Every variant has the same LM weights, the same utterances, the same number of trainable weights and the same optimizer.
Timed steps alternate: one of the yardstick, one pass of a variant over all batches, again. Peak memory is taken in a
process of its own for each variant, on the epoch's longest batch.

    python benchmarks/run.py [--output FILE.json] [--profile] [--quick] [--gpu]
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from arithmetic import count_arithmetic
from caches import cache_facts, measure_assembly, measure_building
from measuring import (
    LIVE_BLOCKS,
    Clock,
    environment,
    operations,
    peak_memory,
    summary,
    use_threads,
    write_json,
)
from precision import measure_precision
from published_layout import PublishedLoop
from tables import show
from variants import LOOPS, SHARED_TEXT, VARIANTS, YARDSTICKS, OurLoop
from workload import TRAINING_SPLIT, Geometry, grouped, make_utterances, representative, with_token_ids

from deepmlf_llm.backbones import load_base_model, load_tokenizer
from deepmlf_llm.commands.shell import RecipeParser, run_recipe

METHOD = {
    "yardstick": "the published cost profile (published_layout.py): random batches, everything padded to its limit",
    "dtypes": "the yardstick and names without a suffix are fp32 throughout; _bf16: the frozen LM is bf16, as SmolLM2 "
    "was published, and what is trained stays fp32; `precision` says what that does to predictions",
    "ours": "length-grouped batches, evenly spread over an epoch's from the shortest to the longest, tokenised once",
    "samples": "the yardstick draws its batches from the very utterances that ours are made of",
    "time": "wall time, steps alternating in one process; a ratio is the median of each pass over the yardstick's step "
    "of the same round (just before the fp32 variant), its spread the quartiles",
    "fusion_cached": "after the first epoch: text read beforehand, a batch's cache put together inside the step",
    "cached_frozen, cached_first_block, cached_best": "the same with tokens that do not train; that enter at the first "
    "MM Block; and that do, in an LM that ends with the fifth of seven MM Blocks",
    "inference_shared_text": "predictions for texts met before (audio and vision encoded again), against the "
    "yardstick's: the text is kept, and so are the fusion tokens below the first MM Block",
    "assembly": "putting a batch's text together from a cache in each place and dtype, over a step of fusion_cached",
    "profile": "one step, ours on the batch of middle length",
    "arithmetic": "FLOPs of all matrix products, backward passes and recomputation included, counted by PyTorch; the "
    "matmul rate is that of the LM's up projection for all fusion tokens of a batch",
    "memory": "VmHWM of a process of its own, nothing subtracted, after two steps on the epoch's longest batch, the "
    "texts of all its batches kept where they are cached; glibc returns freed blocks of 1 MB at once there, so the "
    "peak is what was alive",
}


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    base_model: str = "smollm2-135m"
    batch: int = 32
    batches: int = 5
    rounds: int = 5
    utterances: int = TRAINING_SPLIT
    geometry: Geometry = field(default_factory=Geometry)


QUICK = Setting("tiny-llama", batch=4, batches=2, rounds=3, utterances=24, geometry=Geometry(frames=60))


class Bench:
    """One tokenizer, one set of batches; makes the loops that are compared."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.tokenizer = load_tokenizer(setting.base_model)
        drawn = make_utterances(setting.utterances, setting.geometry)
        epoch = grouped(with_token_ids(drawn, self.tokenizer, setting.geometry.max_tokens), setting.batch)
        self.batches = representative(epoch, setting.batches)
        self.longest = epoch[-1]
        self.texts = [utterance["input_ids"] for batch in epoch for utterance in batch]

    def yardstick(self, name: str = "yardstick") -> PublishedLoop:
        utterances = [utterance for batch in self.batches for utterance in batch]
        lm = load_base_model(self.setting.base_model, dtype=YARDSTICKS[name])
        return PublishedLoop(lm, self.tokenizer, utterances, self.setting.geometry, self.setting.batch)

    def ours(self, name: str, batches: list[Any] | None = None) -> OurLoop:
        variant, dtype = LOOPS[name]
        lm = load_base_model(self.setting.base_model, dtype=dtype)
        return OurLoop(lm, self.tokenizer, batches or self.batches, self.setting.geometry, *VARIANTS[variant])


def measure_training(bench: Bench, profile: bool) -> dict[str, Any]:
    """Alternating training steps, and predictions with cached text: the ``training``, ``inference`` and cache parts."""
    setting = bench.setting
    yardstick = bench.yardstick()
    ours = {name: bench.ours(name) for name in LOOPS}
    half = bench.yardstick("yardstick_bf16")
    for loop in (yardstick, half):
        loop.step()
    for loop in ours.values():
        loop.epoch()
    cached = {name: ours[name] for name in SHARED_TEXT}
    for loop in cached.values():
        loop.assembling = Clock()
    clocks = {name: Clock() for name in ours}
    before = {name: Clock() for name in VARIANTS}
    beside = Clock()
    for _ in range(setting.rounds):
        for variant in VARIANTS:
            with before[variant]:
                yardstick.step()
            for name in (name for name in LOOPS if LOOPS[name][0] == variant):
                with clocks[name]:
                    ours[name].epoch()
        with beside:
            half.step()
    training = {"yardstick": speed([(clock, 1) for clock in before.values()], setting.batch)}
    training["yardstick_bf16"] = speed([(beside, 1)], setting.batch)
    training["yardstick_bf16"]["ratio"] = paired(before["joint"], beside, 1)
    for name, loop in (("yardstick", yardstick), ("yardstick_bf16", half)):
        training[name]["trainable_parameters"] = sum(p.numel() for p in loop.trainable())
    del half
    for name, loop in ours.items():
        training[name] = speed([(clocks[name], setting.batches)], setting.batch)
        training[name]["ratio"] = paired(before[LOOPS[name][0]], clocks[name], setting.batches)
        training[name]["trainable_parameters"] = sum(p.numel() for p in loop.trainable())
    result = {
        "training": training,
        "text_cache": {name: cache_facts(loop, clocks[name]) for name, loop in cached.items()},
        "assembly": measure_assembly(cached["fusion_cached"], training["fusion_cached"]["step_seconds"]["median"]),
        "building": {name: measure_building(loop, bench.texts) for name, loop in cached.items()},
        "inference": measure_inference(yardstick, cached, setting),
        "precision": measure_precision(cached["fusion_cached"], cached["fusion_cached_bf16"]),
    }
    if profile:
        loops: dict[str, Callable[[], Any]] = {
            "yardstick": yardstick.step,
            **{n: partial(loop.step, setting.batches // 2) for n, loop in ours.items()},
        }
        result["profile"] = {name: operations(run) for name, run in loops.items()}
        result["arithmetic"] = count_arithmetic(yardstick, ours)
    return result


def measure_inference(yardstick: PublishedLoop, cached: dict[str, OurLoop], setting: Setting) -> dict[str, Any]:
    clocks = {name: Clock() for name in ("yardstick", *cached)}
    for loop in cached.values():
        loop.model.enable_text_cache("memory", fusion_tokens=True)
    for timed in [False, *[True] * setting.rounds]:
        with clocks["yardstick"] if timed else Clock():
            yardstick.predict()
        for name, loop in cached.items():
            with clocks[name] if timed else Clock():
                loop.predict_epoch()
    result = {"yardstick": speed([(clocks["yardstick"], 1)], setting.batch)}
    for name, shared_text in SHARED_TEXT.items():
        result[shared_text] = speed([(clocks[name], setting.batches)], setting.batch)
        result[shared_text]["ratio"] = paired(clocks["yardstick"], clocks[name], setting.batches)
    return result


def paired(yardstick: Clock, ours: Clock, batches: int) -> dict[str, Any]:
    """How much faster each of our passes over ``batches`` was than the yardstick's step just before it."""
    return summary([one / many * batches for one, many in zip(yardstick.seconds, ours.seconds, strict=True)])


def speed(clocks: list[tuple[Clock, int]], batch: int) -> dict[str, Any]:
    """Samples a second and seconds a step from clocks that each timed so many batches at once."""
    steps = [seconds / count for clock, count in clocks for seconds in clock.seconds]
    kernel = [seconds / count for clock, count in clocks for seconds in clock.kernel_seconds]
    return {
        "samples_per_second": summary([batch / seconds for seconds in steps]),
        "step_seconds": summary(steps),
        "kernel_seconds": summary(kernel),
    }


def measure_memory(setting: Setting, threads: int | None) -> dict[str, dict[str, int]]:
    """A process for each variant, to see its peak alone: a fork of one that has imported libraries, no more."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["deepmlf_llm.model"])  # what takes long; __main__ itself fails before Python 3.12.8
    os.environ.update(LIVE_BLOCKS)  # read when a process starts, so not by this one
    with ProcessPoolExecutor(1, context, use_threads, (threads,), max_tasks_per_child=1) as processes:
        return {name: processes.submit(peak_of, name, setting).result() for name in (*YARDSTICKS, *LOOPS)}


def peak_of(name: str, setting: Setting) -> dict[str, int]:
    """Peak of this process after two steps of one variant on the epoch's longest batch."""
    start = peak_memory()
    bench = Bench(setting)
    if name in YARDSTICKS:
        bench.batches = [bench.longest]
        loop: Any = bench.yardstick(name)
        steps = [loop.step, loop.step]
    else:
        loop = bench.ours(name, [bench.longest])
        if loop.model.fused_decoder.cache is not None:
            loop.model.build_text_cache(bench.texts)
        steps = [loop.epoch, loop.epoch]
    for step in steps:
        step()
    return {"peak_bytes": peak_memory(), "interpreter_bytes": start}


def ratios(result: dict[str, Any]) -> dict[str, float]:
    """Each to the yardstick: speed (more is faster), ``memory_*`` (less is lighter)."""

    found = {name: result["training"][name]["ratio"]["median"] for name in (*LOOPS, "yardstick_bf16")}
    for name, facts in result["inference"].items():
        if name != "yardstick":
            found[f"inference_{name}"] = facts["ratio"]["median"]
    peaks = result["memory"]
    for name in (*LOOPS, "yardstick_bf16"):
        found[f"memory_{name}"] = peaks[name]["peak_bytes"] / peaks["yardstick"]["peak_bytes"]
    return found


def main() -> int:
    parser = RecipeParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--base_model", help="a LLaMA-class base model; default: smollm2-135m (--quick: tiny-llama)")
    parser.add_argument("--rounds", type=int, help="timed rounds; default: 5 (--quick: 3)")
    parser.add_argument("--batches", type=int, help="batches of a pass; default: 5 (--quick: 2)")
    parser.add_argument("--threads", type=int, help="compute threads; default: OMP_NUM_THREADS or one a core")
    parser.add_argument("--profile", action="store_true", help="seconds by operator for each variant too")
    parser.add_argument("--gpu", action="store_true", help="benchmarks/gpu.py with its defaults, on a CUDA device")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to try the command: figures mean nothing")
    args = parser.parse_args()
    if args.gpu:
        from gpu import CASES, run

        return run(CASES, args.rounds or 5, args.output)
    changes = {key: getattr(args, key) for key in ("base_model", "rounds", "batches") if getattr(args, key)}
    setting = Setting(**{**vars(QUICK if args.quick else Setting()), **changes})
    memory = measure_memory(setting, args.threads)
    use_threads(args.threads)
    result = {**measure_training(Bench(setting), args.profile), "memory": memory}
    result = {
        "ratios": ratios(result),
        **result,
        "setting": asdict(setting),
        "method": METHOD,
        "environment": environment(),
    }
    show(result)
    if args.output:
        write_json(args.output, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
