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
from measuring import base_of, benchmark_parser, environment, summary, timed, use_threads, write_json
from published_layout import blocks_after
from tables import growth
from variants import make_loop
from workload import Geometry, make_utterance, with_token_ids

from deepmlf_llm.backbones import load_base_model, load_tokenizer
from deepmlf_llm.commands.shell import run_recipe

STYLES = {
    "yardstick": {"color": "#000000", "marker": "s", "linestyle": ":"},
    "joint": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    "fusion": {"color": "#D55E00", "marker": "^", "linestyle": "--"},
    "fusion_cached": {"color": "#009E73", "marker": "D", "linestyle": "-."},
}

QUARTILES = ("median", "low", "high")


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


def loop_at(variant: str, point: Point, lm: Any, tokenizer: Any) -> Any:
    """One variant at one point: a batch whose every utterance has exactly these sizes."""
    geometry = Geometry(max_tokens=point.text, frames=point.frames)
    random = np.random.default_rng(0)
    drawn = [make_utterance(point.text, geometry, random, f"u{i}", point.frames) for i in range(point.batch)]
    utterances = with_token_ids(drawn, tokenizer, point.text)
    layers = blocks_after(lm.config.num_hidden_layers)[-point.blocks :]
    return make_loop(variant, lm, tokenizer, [utterances], geometry, num_tokens=point.tokens, layers=layers)


def measure(variant: str, point: Point, args: Namespace, tokenizer: Any) -> dict[str, Any]:
    """Seconds of a training step, after one that is not timed but counted."""
    step = loop_at(variant, point, load_base_model(args.base_model, dtype="float32"), tokenizer).step
    counted = flops(step)
    return {"step_seconds": summary(timed(step, args.repeats, warm=0)), "flops": counted}


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
    from matplotlib.figure import Figure

    sweeps = result["sweeps"]
    figure = Figure(figsize=(3.4 * len(sweeps), 6.4), layout="tight")
    axes = figure.subplots(2, len(sweeps), squeeze=False, sharex="col", sharey="row")
    for column, facts in zip(axes.T, sweeps.values(), strict=True):
        sizes = facts["sizes"]
        for variant, line in facts["variants"].items():
            steps = np.array([[point["step_seconds"][key] for point in line["points"]] for key in QUARTILES])
            counted, look = [point["flops"] / 1e9 for point in line["points"]], {"markersize": 4, **STYLES[variant]}
            bars = np.abs(steps[1:] - steps[0])
            column[0].errorbar(sizes, steps[0], bars, label=f"p = {line['exponent']:.2f}", capsize=2, **look)
            column[1].plot(sizes, counted, label=f"{variant}, p = {line['flops_exponent']:.2f}", **look)
        column[1].set_xlabel(facts["label"])
        for axis in column:
            axis.set(xscale="log", yscale="log")
            axis.set_xticks(sizes, labels=map(str, sizes))
            axis.minorticks_off()
            axis.grid(alpha=0.3)
            axis.legend(fontsize=7, frameon=False)
    axes[0][0].set_ylabel("seconds a training step")
    axes[1][0].set_ylabel("GFLOPs a training step")
    figure.suptitle(f"{result['base_model']}, cost of a training step", fontsize=10)
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text
        figure.savefig(path)


def main() -> None:
    parser = benchmark_parser(__doc__.splitlines()[0])
    parser.set_defaults(output=Path("runs/scaling.json"))
    parser.add_argument("--sweeps", nargs="+", choices=list(SWEEPS), default=list(SWEEPS), help="what moves")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps a point")
    args = parser.parse_args()
    args.base_model, args.repeats = base_of(args), 2 if args.quick else args.repeats
    use_threads(args.threads)
    tokenizer = load_tokenizer(args.base_model)
    sweeps = {name: sweep(name, SWEEPS[name][1][: 3 if args.quick else None], args, tokenizer) for name in args.sweeps}
    result = {"base_model": args.base_model, "point": vars(Point()), "sweeps": sweeps, "environment": environment()}
    print(growth(result))
    write_json(args.output, result)
    plot(result, args.output.with_suffix(".svg"))


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
