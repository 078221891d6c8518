"""How a training step's cost grows: with text length, fusion tokens, MM Blocks, AV frames and batch size.

One size moves at a time, the others stay. Each line's exponent p is the slope of log(cost) over log(size): 1 grows in
proportion, 0 does not grow. Cost is the seconds that a step took, which depend on what else the machine does, and the
FLOPs of its matrix products, which do not. The figure and its JSON file lie side by side.

    python benchmarks/scaling.py [--output runs/scaling.json] [--base_model smollm2-135m] [--quick]
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from arithmetic import flops
from measuring import Clock, benchmark_parser, environment, markdown, summary, use_threads, write_json
from published_layout import PublishedLoop, blocks_after
from variants import VARIANTS, OurLoop
from workload import Geometry, make_utterance, with_token_ids

from deepmlf_llm.backbones import load_base_model, load_tokenizer
from deepmlf_llm.commands.shell import run_recipe

STYLES = {
    "yardstick": {"color": "#000000", "marker": "s", "linestyle": ":"},
    "joint": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    "fusion": {"color": "#D55E00", "marker": "^", "linestyle": "--"},
    "fusion_cached": {"color": "#009E73", "marker": "D", "linestyle": "-."},
}

EXPONENTS = {
    "exponent": "exponent of seconds",
    "flops_exponent": "exponent of FLOPs",
    "flops_exponent_at_top": "between the two largest",
}


@dataclass(frozen=True)
class Point:
    """Sizes of one measurement."""

    text: int = 16
    tokens: int = 12
    blocks: int = 7
    frames: int = 50
    batch: int = 8


SWEEPS: dict[str, tuple[str, list[int]]] = {
    "text": ("text tokens", [8, 16, 32, 64, 128]),
    "tokens": ("fusion tokens n", [2, 4, 8, 16, 32]),
    "blocks": ("MM Blocks", [1, 2, 3, 5, 7]),
    "frames": ("frames of audio and of vision", [25, 50, 100, 200, 400]),
    "batch": ("utterances in a batch", [2, 4, 8, 16, 32]),
}


def make_loop(variant: str, point: Point, lm: Any, tokenizer: Any) -> Any:
    """One variant at one point: a batch whose every utterance has exactly these sizes."""
    geometry = Geometry(max_tokens=point.text, frames=point.frames)
    random = np.random.default_rng(0)
    drawn = [make_utterance(point.text, geometry, random, f"u{i}", point.frames) for i in range(point.batch)]
    utterances = with_token_ids(drawn, tokenizer, point.text)
    layers = blocks_after(lm.config.num_hidden_layers)[-point.blocks :]
    if variant == "yardstick":
        return PublishedLoop(lm, tokenizer, utterances, geometry, point.batch, num_tokens=point.tokens, layers=layers)
    return OurLoop(lm, tokenizer, [utterances], geometry, *VARIANTS[variant], point.tokens, layers=layers)


def measure(variant: str, point: Point, args: Namespace, tokenizer: Any) -> dict[str, Any]:
    """Seconds of a training step, after one that is not timed but counted."""
    loop = make_loop(variant, point, load_base_model(args.base_model, dtype="float32"), tokenizer)
    step = loop.step if variant == "yardstick" else loop.epoch
    counted, clock = flops(step), Clock()
    for _ in range(args.repeats):
        with clock:
            step()
    return {"step_seconds": summary(clock.seconds), "flops": counted}


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """p of the power law ``cost = c size^p`` that fits best in logarithms.

    >>> round(exponent([1, 2, 4], [3, 12, 48]), 6)
    2.0
    """
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def sweep(name: str, sizes: Sequence[int], args: Namespace, tokenizer: Any) -> dict[str, Any]:
    """All variants over the sizes of one sweep, with exponents: over all sizes, and between the two largest."""
    result: dict[str, Any] = {"sizes": list(sizes), "label": SWEEPS[name][0], "variants": {}}
    for variant in STYLES:
        points = [measure(variant, replace(Point(), **{name: size}), args, tokenizer) for size in sizes]
        medians = [point["step_seconds"]["median"] for point in points]
        counted = [point["flops"] for point in points]
        result["variants"][variant] = {
            "points": points,
            "exponent": exponent(sizes, medians),
            "flops_exponent": exponent(sizes, counted),
            "flops_exponent_at_top": exponent(sizes[-2:], counted[-2:]),
        }
        print(f"{SWEEPS[name][0]}, {variant}: {', '.join(f'{seconds:.3f}' for seconds in medians)} s a step")
    return result


def plot(result: dict[str, Any], path: Path) -> None:
    """Small multiples, a column a sweep, seconds above and FLOPs below, all axes logarithmic; bars are quartiles."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.fonttype"] = "none"  # text stays text
    sweeps = result["sweeps"]
    figure, axes = pyplot.subplots(
        2, len(sweeps), figsize=(3.4 * len(sweeps), 6.4), squeeze=False, sharex="col", sharey="row"
    )
    for (above, below), facts in zip(axes.T, sweeps.values(), strict=True):
        for variant, line in facts["variants"].items():
            steps = [point["step_seconds"] for point in line["points"]]
            middle = np.array([step["median"] for step in steps])
            spread = np.abs(np.array([[step["low"], step["high"]] for step in steps]).T - middle)
            look = {"markersize": 4, **STYLES[variant]}
            label = f"{variant}, p = {line['exponent']:.2f}"
            above.errorbar(facts["sizes"], middle, spread, label=label, capsize=2, **look)
            counted = [point["flops"] / 1e9 for point in line["points"]]
            below.plot(facts["sizes"], counted, label=f"{variant}, p = {line['flops_exponent']:.2f}", **look)
        below.set_xlabel(facts["label"])
        for axis in (above, below):
            axis.set(xscale="log", yscale="log")
            axis.set_xticks(facts["sizes"], labels=[str(size) for size in facts["sizes"]])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
            axis.legend(fontsize=7, frameon=False)
    axes[0][0].set_ylabel("seconds a training step")
    axes[1][0].set_ylabel("GFLOPs a training step")
    figure.suptitle(f"{result['base_model']}, cost of a training step", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main() -> None:
    parser = benchmark_parser(__doc__.splitlines()[0], "smollm2-135m")
    parser.set_defaults(output=Path("runs/scaling.json"))  # the figure beside it: .png, .svg
    parser.add_argument("--sweeps", nargs="+", choices=list(SWEEPS), default=list(SWEEPS), help="what moves")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps a point")
    args = parser.parse_args()
    args.base_model = args.base_model or ("tiny-llama" if args.quick else "smollm2-135m")
    if args.quick:
        args.repeats = 2
    use_threads(args.threads)
    tokenizer = load_tokenizer(args.base_model)
    sweeps = {name: sweep(name, SWEEPS[name][1][: 3 if args.quick else None], args, tokenizer) for name in args.sweeps}
    result = {"base_model": args.base_model, "point": vars(Point()), "sweeps": sweeps, "environment": environment()}
    rows = [
        [facts["label"], variant, *(f"{line[key]:.2f}" for key in EXPONENTS)]
        for facts in sweeps.values()
        for variant, line in facts["variants"].items()
    ]
    print(markdown(["size", "variant", *EXPONENTS.values()], rows))
    write_json(args.output, result)
    for suffix in (".png", ".svg"):
        plot(result, args.output.with_suffix(suffix))


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
