"""The plots of a report: quality against what was varied and what it costs, and what each head says alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from deepmlf_llm.statistics.seeds import t_interval
from deepmlf_llm.statistics.style import COLOURS, LINES, MARKERS, WIDTH, figure, legend_below, svg
from deepmlf_llm.study.configurations import BACKBONE, NOTHING, Configuration, axis_name, named, plain
from deepmlf_llm.study.statistics import FIT_POINTS, Fit, different, fit_log, front
from deepmlf_llm.tasks.metrics import higher_is_better

HEADS = {"prediction": "prediction (all)", "fusion": "fusion tokens", "text": "text", "av": "audio and vision"}


@dataclass(frozen=True)
class Plot:
    """One plot: file name without ending, what it shows for those who cannot see it, the text under it, the picture."""

    name: str
    alt: str
    caption: str
    svg: bytes


@dataclass(frozen=True)
class Quantity:
    """What a plot draws along x."""

    name: str
    label: str
    of: Callable[[Configuration], float | None]
    logarithmic: bool = False
    joined: bool = True  # the points of a line are values of one setting
    along: tuple[str, ...] = ()  # settings whose values x stands for; default: its name
    power: bool = False  # a curve through the points is a power law
    counts: bool = False  # x is a count, so points may stand a little beside it
    fused: bool = False  # x is what the text alone says: drawn against itself, that says nothing

    @property
    def settings(self) -> tuple[str, ...]:
        return self.along or (self.name,)


def of_base_models(x: Mapping[str, Mapping[Any, float]]) -> dict[str, Quantity]:
    """What quality is drawn against where base models differ.

    Args:
        x: ``"lm_parameters"``, ``"bits_per_byte"``, ``"text_quality"`` -> base model and layers -> value.
    """
    labels = {
        "lm_parameters": ("parameters of the LM", True),
        "bits_per_byte": ("bits per byte of the transcripts, frozen LM", False),
        "text_quality": ("text alone, same LM", False),
    }
    return {
        name: Quantity(
            name,
            label,
            _looked_up(x.get(name, {})),
            logarithmic,
            along=BACKBONE,
            power=logarithmic,
            fused=name == "text_quality",
        )
        for name, (label, logarithmic) in labels.items()
    }


def _looked_up(values: Mapping[Any, float]) -> Callable[[Configuration], float | None]:
    return lambda c: values.get(c.backbone)


def quantities() -> dict[str, Quantity]:
    """Everything that quality is drawn against."""

    def cost(*path: str) -> Callable[[Configuration], float | None]:
        return lambda c: fmean(values) if (values := c.train(*path)) else None

    return {
        "layers": Quantity("layers", "LM layers", lambda c: c.values["layers"], counts=True),
        "blocks": Quantity("blocks", "MM Blocks", lambda c: c.values["blocks"], counts=True),
        "num_fusion_tokens": Quantity(
            "num_fusion_tokens", "fusion tokens", lambda c: c.values.get("num_fusion_tokens", 8), counts=True
        ),
        "parameters": Quantity("parameters", "trainable parameters", cost("parameters", "trainable"), True, False),
        "memory": Quantity("memory", "peak memory of a cell (MB)", cost("peak_memory_mb", "resident"), True, False),
        "flops": Quantity("flops", "FLOPs of a training step", cost("step_flops"), True, False),
        "seconds": Quantity("seconds", "seconds of training", cost("seconds"), True, False),
    }


def quality_plot(
    configurations: Sequence[Configuration], quantity: Quantity, axes: Sequence[str], metric: str
) -> Plot | None:
    """The metric on the test split against ``quantity``; None where it does not vary."""
    if quantity.fused:
        configurations = [c for c in configurations if plain(c.values.get("modalities")) != NOTHING]
    points = [(x, c) for c in configurations if (x := quantity.of(c)) is not None and c.by_seed(metric)]
    if len({x for x, _ in points}) < 2 or (quantity.joined and not set(quantity.settings).intersection(axes)):
        return None
    others = _telling(configurations, [axis for axis in axes if axis not in quantity.settings])
    looks = _Looks(configurations, others)
    lines: dict[str, list[tuple[float, Configuration]]] = {}
    for x, c in sorted(points, key=lambda point: point[0]):
        lines.setdefault(c.rest("", others) if quantity.joined else str(id(c)), []).append((x, c))
    fits = _fits(lines.values(), metric, quantity.power, others) if quantity.joined else []
    cheapest = [] if quantity.joined else pareto(points, metric)
    with figure() as (drawn, (ax,)):
        if quantity.logarithmic:
            ax.set_xscale("log")
        _draw_points(ax, list(lines.values()), looks, metric, quantity)
        for _, fit, low, high in fits:
            xs = [low * (high / low) ** (i / 40) for i in range(41)]
            ax.plot(xs, [fit.at(x) for x in xs], color="#555555", linewidth=1, zorder=1)
        if len(cheapest) > 1:
            means = [fmean(c.by_seed(metric).values()) for _, c in cheapest]
            ax.step([x for x, _ in cheapest], means, where="post", color="#555555", linewidth=1, zorder=1)
        _tidy(ax, quantity, metric, points)
        legend_below(drawn, looks.handles(quantity.joined), 2)
        picture = svg(drawn)
    said = _fit_sentence(fits, different([x for x, _ in points]), metric) if quantity.joined else _FRONT
    only = " Runs with modalities only." if quantity.fused else ""
    caption = f"Test {metric} against {quantity.label}.{only} {said}"
    if others_unseen := looks.unseen:
        caption += f" Points that look alike differ in {', '.join(axis_name(a) for a in others_unseen)}."
    return Plot(f"{metric}-{quantity.name}", f"Plot of test {metric} against {quantity.label}", caption, picture)


_FRONT = (
    "Grey: the Pareto front; of the points on it none is cheaper and better than another, by means over seeds, whose "
    "intervals often overlap."
)


def pareto(points: Sequence[tuple[float, Configuration]], metric: str) -> list[tuple[float, Configuration]]:
    """Those of (cost, configuration) that no other one beats in both."""
    means = [(x, fmean(c.by_seed(metric).values())) for x, c in points]
    return [points[i] for i in front(means, higher_is_better(metric))]


class _Looks:
    """Colour shows the first other setting, shape the second."""

    def __init__(self, configurations: Sequence[Configuration], others: Sequence[str]) -> None:
        self.axes = list(others[:2])
        self.unseen = list(others[2:])
        self.values = [list(dict.fromkeys(c.values.get(axis) for c in configurations)) for axis in self.axes]

    def of(self, c: Configuration) -> tuple[str, str, str]:
        """Colour, marker, line."""
        places = [v.index(c.values.get(axis)) for axis, v in zip(self.axes, self.values, strict=True)] + [0, 0]
        return COLOURS[places[0] % len(COLOURS)], MARKERS[places[1] % len(MARKERS)], LINES[places[1] % len(LINES)]

    def handles(self, joined: bool) -> list[Any]:
        from matplotlib.lines import Line2D

        handles = []
        for place, (axis, values) in enumerate(zip(self.axes, self.values, strict=True)):
            for i, value in enumerate(values):
                colour = COLOURS[i % len(COLOURS)] if place == 0 else "#555555"
                marker = MARKERS[i % len(MARKERS)] if place == 1 else "o"
                line = ("-" if place == 0 else LINES[i % len(LINES)]) if joined else "none"
                label = named(axis, value)
                handles.append(Line2D([], [], color=colour, marker=marker, linestyle=line, label=label))
        return handles


def _draw_points(
    ax: Any,
    lines: Sequence[Sequence[tuple[float, Configuration]]],
    looks: _Looks,
    metric: str,
    quantity: Quantity,
) -> None:
    """Means with their intervals, side by side where lines share an x; every seed as a faint dot."""
    spread = 0.016 if quantity.counts and len(lines) > 1 else 0.0  # elsewhere x is a measured number
    span = max(x for line in lines for x, _ in line) - min(x for line in lines for x, _ in line)
    for number, line in enumerate(lines):
        shift = (number - (len(lines) - 1) / 2) * spread * span
        colour, marker, style = looks.of(line[0][1])
        found = [t_interval(list(c.by_seed(metric).values())) for _, c in line]
        xs = [x + shift for x, _ in line]
        for x, interval, (_, c) in zip(xs, found, line, strict=True):
            if interval.half is not None:
                ax.vlines(x, interval.low, interval.high, color=colour, linewidth=1.1, alpha=0.55, zorder=2)
            values = list(c.by_seed(metric).values())
            ax.plot([x] * len(values), values, ".", color=colour, markersize=4, alpha=0.6, zorder=3)
        means = [interval.mean for interval in found]
        ax.plot(
            xs,
            means,
            marker=marker,
            linestyle=style if quantity.joined else "none",
            color=colour,
            linewidth=1.4,
            zorder=4,
        )


def _tidy(ax: Any, quantity: Quantity, metric: str, points: Sequence[tuple[float, Configuration]]) -> None:
    """Limits by the seeds' own values: an interval over two seeds may be ten times as long, and is cut at the edge."""
    values = [value for _, c in points for value in c.by_seed(metric).values()]
    margin = 0.18 * (max(values) - min(values)) or 0.05
    ax.set_ylim(min(values) - margin, max(values) + margin)
    ax.set_xlabel(quantity.label)
    ax.set_ylabel(f"test {metric}")
    if quantity.logarithmic:
        from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator

        ax.xaxis.set_major_locator(FixedLocator(_log_ticks(sorted(x for x, _ in points))))
        engineers = EngFormatter(sep="")
        of_parameters = quantity.name.endswith("parameters")  # their billion is a B; that of FLOPs a G
        ax.xaxis.set_major_formatter(lambda x, _: engineers(x).replace("G", "B") if of_parameters else engineers(x))
        ax.xaxis.set_minor_locator(NullLocator())
    elif all(float(x).is_integer() for x, _ in points):
        ax.set_xticks(sorted({x for x, _ in points}))


def _log_ticks(xs: Sequence[float]) -> list[float]:
    """The values themselves where they are few, to two digits; else a few round numbers between them."""
    if different(xs) <= 3:
        kept: list[float] = []
        for x in sorted({float(f"{x:.1e}") for x in xs}):
            if not kept or different([kept[-1], x]) == 2:  # two labels in one place cannot be read
                kept.append(x)
        return kept
    low, high = xs[0], xs[-1]
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = [d * 10.0**e for e in exponents for d in digits if 0.9 * low <= d * 10.0**e <= 1.1 * high]
        if len(ticks) >= 3:
            break
    return ticks


def _telling(configurations: Sequence[Configuration], axes: Sequence[str]) -> list[str]:
    """Those of the settings that differ among these configurations: they tell one line of a plot from another."""
    return [axis for axis in axes if len({str(c.values.get(axis)) for c in configurations}) > 1]


def _fits(lines: Any, metric: str, power: bool, axes: Sequence[str]) -> list[tuple[str, Fit, float, float]]:
    """Which line, its curve, from where to where."""
    found = []
    for line in lines:
        xs = [float(x) for x, _ in line]
        fit = fit_log(xs, [fmean(c.by_seed(metric).values()) for _, c in line], power)
        if fit is not None:
            found.append((line[0][1].label(axes), fit, min(xs), max(xs)))
    return found


def _fit_sentence(fits: Sequence[tuple[str, Fit, float, float]], places: int, metric: str) -> str:
    if not fits:
        return f"No curve is fitted: {places} clearly different values of x, a curve needs {FIT_POINTS}."
    slopes = "; ".join(fit.slope.text() + (f" ({label})" if label else "") for label, fit, _, _ in fits)
    if fits[0][1].power:
        return f"Grey: {metric} = a x^b, least squares of the logarithms of the means; 95 % intervals; b = {slopes}."
    return (
        f"Grey: {metric} = a + b log10(x), least squares through the means, which ignores what else differs between "
        f"the points; 95 % intervals; b, per tenfold x = {slopes}."
    )


def heads_plot(configurations: Sequence[Configuration], axes: Sequence[str], metric: str) -> Plot | None:
    """Each head's own metric beside the prediction's, one row a configuration."""
    rows = [c for c in configurations if c.by_seed(metric)][:30]
    if not rows:
        return None
    with figure(WIDTH, 0.3 * len(rows) + 1.5) as (drawn, (ax,)):
        handles = []
        for place, (head, name) in enumerate(HEADS.items()):
            found = [list(c.by_seed(metric).values()) if head == "prediction" else c.head(head, metric) for c in rows]
            points = [(fmean(values), row) for row, values in enumerate(found) if values]
            if points:
                xs, ys = zip(*points, strict=True)
                look = {"color": COLOURS[place], "marker": MARKERS[place], "linestyle": "none", "label": name}
                handles += ax.plot(xs, ys, **look, markerfacecolor="none" if place else COLOURS[0])
        ax.set_yticks(range(len(rows)), [_short(c, axes) for c in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_xlabel(f"test {metric}, mean over seeds")
        legend_below(drawn, handles, 2)
        picture = svg(drawn)
    named = ", ".join(axis_name(axis) for axis in axes) or "one configuration"
    caption = f"Test {metric} of each head alone beside the prediction's. Rows: {named}." + (
        f" The first {len(rows)} of {len(configurations)} configurations." if len(configurations) > len(rows) else ""
    )
    return Plot("heads", f"Plot of each head's test {metric} by configuration", caption, picture)


def _short(c: Configuration, axes: Sequence[str]) -> str:
    return " · ".join(str(c.values.get(axis)) for axis in axes) or "all"
