"""DeepMLF against the published cost profile, on this machine's CPU, in one run: samples a second and peak memory.

Every variant has the same LM weights, the same utterances, as many trained weights (but for designs that leave some
out) and the same optimizer. Timed steps alternate: one of the yardstick, one of each variant, again. A cell is a kind
of texts and frames a modality: ``8-44:50`` (tokens spread evenly), ``mosi:500`` (MOSI's lengths), ``mosi:spoken`` (as
many frames as speech of that length has, at most 500). Peak memory is taken in a process of its own for each variant,
on the epoch's longest batch. What is measured is written after each part.

    python benchmarks/run.py --output FILE.json [--cells 8-44:50 mosi:spoken ..] [--variants joint ..] [--details]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from arithmetic import count_arithmetic, measure_building
from measuring import (
    Clock,
    benchmark_parser,
    environment,
    in_own_process,
    operations,
    peak_memory,
    summary,
    use_threads,
    write_json,
)
from published_layout import PublishedLoop
from tables import show
from variants import GAMMA, LOOPS, SHARED_TEXT, VARIANTS, YARDSTICKS, OurLoop
from workload import TEXTS, TRAINING_SPLIT, Geometry, grouped, make_utterances, representative, with_token_ids

from deepmlf_llm.backbones import load_base_model, load_tokenizer
from deepmlf_llm.commands.shell import run_recipe
from deepmlf_llm.errors import ConfigError

METHOD = {
    "yardstick": "published_layout.py: random batches of the utterances that ours are made of, everything padded; "
    "yardstick_gamma: with the LM's loss; yardstick_bf16: bf16 LM, autocast",
    "names": "without a suffix fp32 throughout; _bf16: the frozen LM is bf16, what is trained is fp32. cached: text "
    "read beforehand; cached_best: tokens enter at the first MM Block, the LM ends with the fifth of seven. "
    "shared_text: predictions for texts met before, audio and vision encoded again",
    "time": "wall time, steps alternating in one process; of round i ours is the i-th batch, spread evenly over an "
    "epoch's length-grouped batches from the shortest to the longest; a ratio is the median over rounds, its spread "
    "the quartiles; `overall` is all seconds of the one over all of the other",
    "details": "of the first cell; FLOPs are those of all matrix products, counted by PyTorch, ours on the middle "
    "batch; the matmul rate is that of the LM's up projection for a batch's fusion tokens",
    "memory": "of the last cell: VmHWM of a process of its own after two steps on the epoch's longest batch, all its "
    "texts kept where they are cached; glibc returns freed blocks of 1 MB at once there, so the peak was alive",
}
CELLS = ("8-44:50", "8-44:500")


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    base_model: str = "smollm2-135m"
    batch: int = 32
    rounds: int = 7
    utterances: int = TRAINING_SPLIT
    texts: str = "mosi"
    frames: int | None = None  # of each modality; None: as many as speech has
    geometry: Geometry = field(default_factory=Geometry)

    def of(self, cell: str) -> Setting:
        """This setting in a cell.

        Raises:
            ConfigError: no such cell.
        """
        texts, _, frames = cell.partition(":")
        if texts not in TEXTS or not (frames == "spoken" or frames.isdigit()):
            raise ConfigError(
                f"--cells {cell!r}: expected TEXTS:FRAMES, of {', '.join(TEXTS)} and a number or 'spoken'"
            )
        if frames == "spoken":
            return replace(self, texts=texts)
        return replace(self, texts=texts, frames=int(frames), geometry=replace(self.geometry, frames=int(frames)))


QUICK = Setting("tiny-llama", batch=4, rounds=2, utterances=24, geometry=Geometry(frames=60))


class Bench:
    """One tokenizer, one set of batches; makes the loops that are compared."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.tokenizer = load_tokenizer(setting.base_model)
        drawn = make_utterances(setting.utterances, setting.geometry, texts=setting.texts, frames=setting.frames)
        epoch = grouped(with_token_ids(drawn, self.tokenizer, setting.geometry.max_tokens), setting.batch)
        self.batches = representative(epoch, setting.rounds)
        self.longest = epoch[-1]
        self.texts = [utterance["input_ids"] for batch in epoch for utterance in batch]

    def yardstick(self, name: str = "yardstick") -> PublishedLoop:
        utterances = [utterance for batch in self.batches for utterance in batch]
        dtype, gamma = YARDSTICKS[name]
        lm = load_base_model(self.setting.base_model, dtype=dtype)
        return PublishedLoop(lm, self.tokenizer, utterances, self.setting.geometry, self.setting.batch, gamma)

    def ours(self, name: str, batches: list[Any] | None = None) -> OurLoop:
        variant, dtype = LOOPS[name]
        lm = load_base_model(self.setting.base_model, dtype=dtype)
        return OurLoop(lm, self.tokenizer, batches or self.batches, self.setting.geometry, *VARIANTS[variant])


def measure_cell(setting: Setting, names: Sequence[str], details: bool = False) -> dict[str, Any]:
    """Alternating training steps, then predictions for texts met before: ``training`` and ``inference``."""
    bench = Bench(setting)
    yardsticks = {name: bench.yardstick(name) for name in _yardsticks(names)}
    ours = {name: bench.ours(name) for name in names}
    for loop in yardsticks.values():
        loop.step()
    for loop in ours.values():
        loop.step(0)
    clocks = {name: Clock() for name in (*yardsticks, *ours)}
    for index in range(setting.rounds):
        for name, yardstick in yardsticks.items():
            with clocks[name]:
                yardstick.step()
        for name, loop in ours.items():
            with clocks[name]:
                loop.step(index)
    training = {name: _speed(clocks[name], clocks[_beside(name)], setting.batch) for name in clocks}
    for name, loop in (*yardsticks.items(), *ours.items()):
        training[name]["trainable_parameters"] = sum(p.numel() for p in loop.trainable())
    result: dict[str, Any] = {"training": training}
    if details:
        result["details"] = measure_details(bench, yardsticks["yardstick"], ours)
    result["inference"] = measure_inference(bench, yardsticks["yardstick"], ours)
    return {**result, "setting": asdict(setting)}


def measure_details(bench: Bench, yardstick: PublishedLoop, ours: dict[str, OurLoop]) -> dict[str, Any]:
    """A profile, the arithmetic, reading texts into a cache."""
    middle = bench.setting.rounds // 2
    steps: dict[str, Callable[[], Any]] = {"yardstick": yardstick.step}
    steps |= {name: partial(loop.step, middle) for name, loop in ours.items()}
    found: dict[str, Any] = {"profile": {name: operations(run) for name, run in steps.items()}}
    cached = {name: ours[name] for name in ("fusion_cached", "fusion_cached_bf16") if name in ours}
    if len(cached) == 2:
        found["building"] = {name: measure_building(loop, bench.texts[::5]) for name, loop in cached.items()}
        found["arithmetic"] = count_arithmetic(yardstick, ours)
    return found


def measure_inference(bench: Bench, yardstick: PublishedLoop, ours: dict[str, OurLoop]) -> dict[str, Any]:
    asked = {SHARED_TEXT[name]: loop for name, loop in ours.items() if name in SHARED_TEXT}
    clocks = {name: Clock() for name in ("yardstick", *asked)}
    yardstick.predict()
    for loop in asked.values():
        loop.model.enable_text_cache("memory", fusion_tokens=True)
        for _ in range(2):
            loop.predict_epoch()
    for index in range(bench.setting.rounds):
        with clocks["yardstick"]:
            yardstick.predict()
        for name, loop in asked.items():
            with clocks[name]:
                loop.predict(index)
    return {name: _speed(clock, clocks["yardstick"], bench.setting.batch) for name, clock in clocks.items()}


def _yardsticks(names: Sequence[str]) -> list[str]:
    return ["yardstick", *sorted({_beside(name) for name in names} - {"yardstick"}), "yardstick_bf16"]


def _beside(name: str) -> str:
    """What a loop is compared with."""
    return "yardstick_gamma" if name in ("yardstick_gamma", GAMMA, f"{GAMMA}_bf16") else "yardstick"


def _speed(clock: Clock, yardstick: Clock, batch: int) -> dict[str, Any]:
    """Samples a second, seconds a step, and how much faster than the yardstick's step of the same round."""
    return {
        "samples_per_second": summary([batch / seconds for seconds in clock.seconds]),
        "step_seconds": summary(clock.seconds),
        "ratio": summary([one / other for one, other in zip(yardstick.seconds, clock.seconds, strict=True)]),
        "overall": sum(yardstick.seconds) / sum(clock.seconds),
    }


def measure_memory(setting: Setting, names: Sequence[str], threads: int | None) -> dict[str, dict[str, int]]:
    """A process for each variant, to see its peak alone."""
    every = (*_yardsticks(names), *names)
    return {name: in_own_process(peak_of, name, setting, threads=threads) for name in every}


def peak_of(name: str, setting: Setting) -> dict[str, int]:
    """Peak of this process after two steps of one variant on the epoch's longest batch."""
    start = peak_memory()
    bench = Bench(setting)
    bench.batches = [bench.longest]
    loop: Any = bench.yardstick(name) if name in YARDSTICKS else bench.ours(name)
    if name not in YARDSTICKS and loop.model.fused_decoder.cache is not None:
        loop.model.build_text_cache(bench.texts)
    for _ in range(2):
        loop.step() if name in YARDSTICKS else loop.epoch()
    return {"peak_bytes": peak_memory(), "interpreter_bytes": start}


def main() -> int:
    parser = benchmark_parser(__doc__.splitlines()[0], "smollm2-135m")
    parser.add_argument("--cells", nargs="+", default=list(CELLS), metavar="TEXTS:FRAMES", help="what is compared on")
    parser.add_argument("--variants", nargs="+", choices=list(LOOPS), metavar="NAME", help=f"of {', '.join(LOOPS)}")
    parser.add_argument("--rounds", type=int, help="timed steps of each; default: 7 (--quick: 2)")
    parser.add_argument("--details", action="store_true", help="a profile, the arithmetic, reading of texts too")
    args = parser.parse_args()
    given = {key: getattr(args, key) for key in ("rounds", "base_model") if getattr(args, key)}
    setting = replace(QUICK if args.quick else Setting(), **given)
    cells, names = {cell: setting.of(cell) for cell in args.cells}, args.variants or list(MUST)
    memory = measure_memory(cells[args.cells[-1]], names, args.threads)
    use_threads(args.threads)
    result: dict[str, Any] = {"cells": {}, "method": METHOD, "memory": memory, "environment": environment()}
    for cell, of_cell in cells.items():
        result["cells"][cell] = measure_cell(of_cell, names, args.details and cell == args.cells[0])
        if args.output:
            write_json(args.output, result)
    show(result)
    return 0


MUST = (
    "joint", GAMMA, "fusion", "fusion_cached", "cached_best",
    "joint_bf16", "fusion_bf16", "fusion_cached_bf16", "cached_best_bf16",
)  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
