"""The plot of a report that shows how gates move in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from deepmlf_llm.statistics.style import COLOURS, MARKERS, WIDTH, figure, svg
from deepmlf_llm.study.configurations import BACKBONE, NOTHING, Configuration, counted
from deepmlf_llm.study.plots import Plot

_GATE_START = {"sigmoid": 0.5, "tanh": 0.0, "none": 1.0}


PANELS = 8
"""Backbones that are shown; more of them make a page too long."""


def gates_plot(configurations: Sequence[Configuration], axes: Sequence[str]) -> Plot | None:
    """Gate factors by LM layer over training, one configuration of each backbone: the same where all have it."""
    backbones: dict[Any, list[tuple[Configuration, Any]]] = {}
    for c in configurations:
        if curves := gate_curves(c):
            backbones.setdefault(c.backbone, []).append((c, curves))
    if not backbones:
        return None
    others = [axis for axis in axes if axis not in BACKBONE]
    common = set.intersection(*({c.rest("", others) for c, _ in of} for of in backbones.values()))
    panels = []
    for of in list(backbones.values())[:PANELS]:
        able = [(c, curves) for c, curves in of if not common or c.rest("", others) in common]
        panels.append(max(able, key=lambda pair: _size(pair[0])))
    with figure(WIDTH, 2.6 * len(panels) + 0.4, len(panels)) as (drawn, subplots):
        for ax, (c, curves) in zip(subplots, panels, strict=True):
            _draw_gates(ax, curves)
            ax.set_title(_title(c), wrap=True)
        subplots[-1].set_xlabel("training step")
        picture = svg(drawn)
    which = "the same for each backbone" if common else "of each backbone its own, for no one is common to all"
    caption = (
        "Gate factors after each LM layer (its number stands at the end of one of its lines), means over the seeds "
        f"that the title counts. Solid: gated cross-attention, dashed: gated FFW. One configuration, {which}: the most "
        "MM Blocks, the most tokens."
    )
    if len(backbones) > len(panels):
        caption += f" The first {len(panels)} of {len(backbones)} backbones."
    return Plot("gates", "Plots of gate factors over training", caption, picture)


def _title(c: Configuration) -> str:
    parts = [str(c.values["base"]), counted(c.values["layers"], "LM layers"), counted(c.values["blocks"], "MM Blocks")]
    if "num_fusion_tokens" in c.values:
        parts.append(counted(c.values["num_fusion_tokens"], "fusion tokens"))
    return ", ".join([*parts, counted(len(c.records), "seeds")])


def _size(c: Configuration) -> tuple[bool, int, int]:
    """What hears and sees comes first: the text alone has no gates of cross-attention."""
    return c.values.get("modalities") != NOTHING, c.values["blocks"], c.values.get("num_fusion_tokens", 0)


def gate_curves(c: Configuration) -> dict[tuple[int, str], list[tuple[int, float]]]:
    """(LM layer, gate) -> (step, mean over the seeds), from where that kind of gate starts."""
    found: dict[tuple[int, str], dict[int, list[float]]] = {}
    for record in c.records.values():
        kind = record["run_info"]["settings"].get("gate", "sigmoid")
        for line in record["train_info"].get("curve") or ():
            if line["kind"] == "gates":
                for name, gates in _layers(line).items():
                    for gate, value in gates.items():
                        steps = found.setdefault((name, gate), {0: [_GATE_START[kind]]})
                        steps.setdefault(line["step"], []).append(value)
    return {
        key: [(step, fmean(values)) for step, values in sorted(steps.items())] for key, steps in sorted(found.items())
    }


def _layers(line: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    return {int(name.split()[-1]): gates for name, gates in line.items() if name.startswith("layer ")}


def _draw_gates(ax: Any, curves: Mapping[tuple[int, str], list[tuple[int, float]]]) -> None:
    layers = sorted({layer for layer, _ in curves})
    for (layer, gate), points in curves.items():
        colour = COLOURS[layers.index(layer) % len(COLOURS)]
        xs, ys = zip(*points, strict=True)
        marker = MARKERS[layers.index(layer) % len(MARKERS)]
        style = "-" if gate == "gca" else "--"
        ax.plot(xs, ys, color=colour, linestyle=style, linewidth=1.4, marker=marker, markersize=4)
    named = max(("gca", "ffw"), key=lambda gate: _spread([p[-1][1] for key, p in curves.items() if key[1] == gate]))
    ends = sorted((points[-1][1], layer, points[-1][0]) for (layer, gate), points in curves.items() if gate == named)
    low, high = ax.get_ylim()
    places: list[float] = []
    for value, _, _ in ends:  # labels that would overlap move up, then all of them back to their lines' middle
        places.append(max(value, places[-1] + (high - low) / 11) if places else value)
    back = min(fmean(value for value, _, _ in ends) - fmean(places), high - max(places)) if places else 0.0
    for place, (_, layer, step) in zip(places, ends, strict=True):
        colour = COLOURS[layers.index(layer) % len(COLOURS)]
        ax.annotate(f" {layer}", (step, place + back), color=colour, va="center", annotation_clip=False)
    ax.set_ylabel("gate factor")


def _spread(values: Sequence[float]) -> float:
    return max(values) - min(values) if values else -1.0
