"""The plot of a report that shows how gates move in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from deepmlf_llm.statistics.style import COLOURS, MARKERS, WIDTH, figure, svg
from deepmlf_llm.study.configurations import NOTHING, Configuration
from deepmlf_llm.study.plots import Plot

_GATE_START = {"sigmoid": 0.5, "tanh": 0.0, "none": 1.0}


def gates_plot(configurations: Sequence[Configuration], axes: Sequence[str]) -> Plot | None:
    """Gate factors by LM layer over training, for one configuration of each backbone: most MM Blocks, most tokens."""
    chosen: dict[Any, Configuration] = {}
    for c in configurations:
        backbone = (c.values["base"], c.values["layers"])
        best = chosen.get(backbone)
        if best is None or _size(c) > _size(best):
            chosen[backbone] = c
    panels = [(c, curves) for c in list(chosen.values())[:3] if (curves := gate_curves(c))]
    if not panels:
        return None
    with figure(WIDTH, 2.6 * len(panels) + 0.4, len(panels)) as (drawn, subplots):
        for ax, (c, curves) in zip(subplots, panels, strict=True):
            _draw_gates(ax, curves)
            ax.set_title(
                f"{c.values['base']}, {c.values['layers']} LM layers, {c.values['blocks']} MM Blocks", wrap=True
            )
        subplots[-1].set_xlabel("training step")
        picture = svg(drawn)
    seeds = len(panels[0][0].records)
    caption = (
        f"Gate factors after each LM layer (its number stands at the end of one of its lines), means over {seeds} "
        "seeds. Solid: gated cross-attention, dashed: gated FFW. One configuration of each backbone: the most MM "
        "Blocks, the most tokens."
    )
    return Plot("gates", "Plots of gate factors over training", caption, picture)


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
