"""DeepMLF against the published cost profile, on this machine's CPU, in one run: seconds a step and peak memory.

    python benchmarks/run.py --output FILE.json [--cells 8-44:50 mosi:spoken ..] [--variants joint ..] [--details]

A cell is a kind of texts and frames a modality: ``8-44:50`` (tokens spread evenly), ``mosi:500`` (MOSI's lengths),
``mosi:spoken`` (as many frames as speech of that length has, at most 500). What is measured is written after each part.

Yardstick (published_layout.py): random batches of the utterances that ours are made of, everything padded;
yardstick_gamma has the LM's loss, yardstick_bf16 a bf16 LM under autocast. Every variant has the same LM weights, as
many trained weights (but for designs that leave some out) and the same optimizer. Without a suffix all is fp32; _bf16:
the frozen LM is bf16, what is trained is fp32. cached: text read beforehand; cached_recipe: eight frozen tokens that
enter at the first of five MM Blocks (as in mosi_smollm2.yaml); cached_four: four, at the first of seven. shared_text:
predictions for texts met before, audio and vision encoded.

Time: wall time, steps alternating in one process: one of each yardstick, one of each variant, again; of round i ours is
the i-th batch, spread evenly over an epoch's length-grouped batches from the shortest to the longest. A ratio is the
median over rounds, its spread the quartiles.

Memory, of the last cell: VmHWM of a process of its own after two steps on the epoch's longest batch, all its texts kept
where they are cached; glibc returns freed blocks of 1 MB at once there, so the peak was alive.

Details, of the first cell: FLOPs of all matrix products, counted by PyTorch, ours on the middle batch; the
matmul rate is that of the LM's up projection for a batch's fusion tokens; reading texts into a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from arithmetic import count_arithmetic, measure_building
from measuring import Clock, benchmark_parser, environment, in_own_process, summary, use_threads, write_json
from tables import show
from variants import GAMMA, LOOPS, SHARED_TEXT, YARDSTICKS, dtype_of, make_loop
from workload import TEXTS, TRAINING_SPLIT, Batches, Geometry, grouped, make_utterances, representative, with_token_ids

from deepmlf_llm.backbones import load_base_model, load_tokenizer
from deepmlf_llm.commands.shell import run_recipe
from deepmlf_llm.errors import ConfigError
from deepmlf_llm.planning.resident import resident_bytes

CELLS = ("8-44:50", "8-44:500")
USUAL = (
    "joint", GAMMA, "fusion", "fusion_cached", "cached_recipe", "cached_four",
    "joint_bf16", "fusion_bf16", "fusion_cached_bf16", "cached_recipe_bf16", "cached_four_bf16",
)  # fmt: skip


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
        self.batches: Batches = representative(epoch, setting.rounds)
        self.longest = epoch[-1]
        self.texts = [utterance["input_ids"] for batch in epoch for utterance in batch]

    def loop(self, name: str) -> Any:
        """Any of the yardsticks or variants, on an LM of its own."""
        lm = load_base_model(self.setting.base_model, dtype=dtype_of(name))
        return make_loop(name, lm, self.tokenizer, self.batches, self.setting.geometry)


def measure_cell(setting: Setting, names: Sequence[str], details: bool = False) -> dict[str, Any]:
    """Alternating training steps, then predictions for texts met before: ``training`` and ``inference``."""
    bench = Bench(setting)
    loops = {name: bench.loop(name) for name in with_yardsticks(names)}
    for loop in loops.values():
        loop.step()
    clocks = alternating({name: loop.step for name, loop in loops.items()}, setting.rounds)
    training = {name: _speed(clocks[name], clocks[_beside(name)]) for name in clocks}
    for name, loop in loops.items():
        training[name]["trainable_parameters"] = sum(p.numel() for p in loop.trainable())
    result: dict[str, Any] = {"training": training}
    if details:
        result["details"] = measure_details(bench, loops)
    return {**result, "inference": measure_inference(loops, setting), "setting": asdict(setting)}


def alternating(steps: Mapping[str, Callable[[int], Any]], rounds: int) -> dict[str, Clock]:
    """Rounds of one step of each."""
    clocks = {name: Clock() for name in steps}
    for index in range(rounds):
        for name, step in steps.items():
            with clocks[name]:
                step(index)
    return clocks


def measure_details(bench: Bench, loops: Mapping[str, Any]) -> dict[str, Any]:
    """The arithmetic, and reading texts into a cache; of other yardsticks than the first nothing."""
    loops = {name: loop for name, loop in loops.items() if name == "yardstick" or name not in YARDSTICKS}
    cached = {name: loop for name, loop in loops.items() if name.startswith("fusion_cached")}
    building = {name: measure_building(loop, bench.texts[::5]) for name, loop in cached.items()}
    return {"building": building, "arithmetic": count_arithmetic(loops, bench.setting.rounds // 2)}


def measure_inference(loops: Mapping[str, Any], setting: Setting) -> dict[str, Any]:
    asked = {"yardstick": loops["yardstick"]}
    asked |= {SHARED_TEXT[name]: loop for name, loop in loops.items() if name in SHARED_TEXT}
    asked["yardstick"].predict()
    for name, loop in asked.items():
        if name != "yardstick":
            loop.model.enable_text_cache("memory", fusion_tokens=True)
            for index in [*range(setting.rounds)] * 2:
                loop.predict(index)
    clocks = alternating({name: loop.predict for name, loop in asked.items()}, setting.rounds)
    return {name: _speed(clock, clocks["yardstick"]) for name, clock in clocks.items()}


def with_yardsticks(names: Sequence[str]) -> list[str]:
    """What is timed, in its order."""
    beside = sorted({_beside(name) for name in names} - {"yardstick"})
    return ["yardstick", *beside, "yardstick_bf16", *names]


def _beside(name: str) -> str:
    """What a loop is compared with."""
    return "yardstick_gamma" if name in ("yardstick_gamma", GAMMA, f"{GAMMA}_bf16") else "yardstick"


def _speed(clock: Clock, yardstick: Clock) -> dict[str, Any]:
    """Seconds a step, and how much faster than the yardstick's step of the same round."""
    return {
        "step_seconds": summary(clock.seconds),
        "ratio": summary([one / other for one, other in zip(yardstick.seconds, clock.seconds, strict=True)]),
    }


def peak_of(name: str, setting: Setting) -> dict[str, int]:
    """Peak of this process after two steps of one variant on the epoch's longest batch."""
    start = resident_bytes().peak
    bench = Bench(setting)
    bench.batches = [bench.longest]
    loop = bench.loop(name)
    if name not in YARDSTICKS and loop.cached:
        loop.model.build_text_cache(bench.texts)
    for _ in range(2):
        loop.step()
    return {"peak_bytes": resident_bytes().peak, "interpreter_bytes": start}


def main() -> int:
    parser = benchmark_parser(__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="+", default=list(CELLS), metavar="TEXTS:FRAMES", help="what is compared on")
    parser.add_argument("--variants", nargs="+", choices=LOOPS, metavar="NAME", help=f"of {', '.join(LOOPS)}")
    parser.add_argument("--rounds", type=int, help="timed steps of each; default: 7 (--quick: 2)")
    parser.add_argument("--details", action="store_true", help="the arithmetic and reading of texts too")
    args = parser.parse_args()
    given = {key: getattr(args, key) for key in ("rounds", "base_model") if getattr(args, key)}
    setting = replace(QUICK if args.quick else Setting(), **given)
    cells, names = {cell: setting.of(cell) for cell in args.cells}, args.variants or list(USUAL)
    last = cells[args.cells[-1]]
    peaks = {name: in_own_process(peak_of, name, last, threads=args.threads) for name in with_yardsticks(names)}
    use_threads(args.threads)
    result: dict[str, Any] = {"cells": {}, "method": __doc__, "memory": peaks, "environment": environment()}
    for cell, of_cell in cells.items():
        result["cells"][cell] = measure_cell(of_cell, names, args.details and cell == args.cells[0])
        write_json(args.output, result)
    show(result)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
