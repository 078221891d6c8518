"""The figure of an ablation: what each variant changes, one line a variant, under the heading of its group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deepmlf_llm.ablation.plan import AblationPlan
from deepmlf_llm.statistics.comparing import Comparison, Difference
from deepmlf_llm.statistics.style import COLOURS, figure, legend_below, svg

_ROW, _WIDTH = 0.24, 7.0  # inches of a line; of the figure
_FAR = 4.0  # half widths of a usual interval: what is farther off is an arrow, so that the others can be told apart
_SHIFT = 0.15  # of the two splits about their line, in lines


def draw_differences(
    plan: AblationPlan, found: Mapping[str, Comparison], metric: str, labels: Mapping[str, str]
) -> bytes:
    """An SVG of the differences from the reference, with their intervals.

    Args:
        plan: order and groups.
        found: split -> comparison with the reference.
        metric: of the differences.
        labels: split -> its name in the legend.
    """
    of_split = {split: differences_in(comparison, metric) for split, comparison in found.items()}
    lines = _lines(plan, set.intersection(*(set(differences) for differences in of_split.values())))
    low, high = _limits([d for differences in of_split.values() for d in differences.values()])
    with figure(_WIDTH, 1.6 + _ROW * len(lines)) as (drawn, (ax,)):
        ax.axvline(0, color="#555555", linewidth=1)
        handles = []
        for place, (split, differences) in enumerate(of_split.items()):
            colour, marker = COLOURS[place], "os"[place % 2]
            for row, (name, is_variant) in enumerate(lines):
                if is_variant:
                    at = row + _SHIFT * (2 * place - len(of_split) + 1)
                    _draw(ax, differences[name], at, colour, marker, (low, high))
            handles += ax.plot([], [], marker, color=colour, label=labels[split])
        handles += ax.plot([], [], "o", color="#555555", markerfacecolor="white", label="no difference is shown (Holm)")
        ax.set_xlim(low, high)
        ax.set_ylim(len(lines) - 0.4, -0.6)
        ax.set_yticks(range(len(lines)), [name for name, _ in lines])
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)
        for row, (tick, (_, is_variant)) in enumerate(zip(ax.get_yticklabels(), lines, strict=True)):
            if is_variant:
                ax.axhline(row, color="#eeeeee", linewidth=0.6, zorder=0)
            else:
                tick.set_fontweight("bold")
        ax.set_xlabel(f"{metric.upper()}, difference from {plan.reference} (left: better)")
        legend_below(drawn, handles, 3)
        return svg(drawn)


def differences_in(comparison: Comparison, metric: str) -> dict[str, Difference]:
    """Variant -> its difference from the reference in one metric."""
    return {d.other: d for d in comparison.differences if d.metric == metric}


def is_shown(difference: Difference) -> bool:
    """Whether the adjusted p-value shows a difference."""
    return difference.p_adjusted is not None and difference.p_adjusted < 0.05


def _lines(plan: AblationPlan, names: set[str]) -> list[tuple[str, bool]]:
    """From top to bottom: the groups' headings, and under each its variants (True)."""
    lines: list[tuple[str, bool]] = []
    for group in dict.fromkeys(variant.group for variant in plan.variants):
        members = [variant.name for variant in plan.variants if variant.group == group and variant.name in names]
        if members:
            lines += [(group, False), *((name, True) for name in members)]
    return lines


def _limits(differences: Sequence[Difference]) -> tuple[float, float]:
    """Of the axis: 0 and the whole intervals of all that is not far off."""
    halves = [(d.interval[1] - d.interval[0]) / 2 for d in differences if d.interval is not None]
    far = _FAR * float(np.median(halves)) if halves else np.inf
    near = [d for d in differences if abs(d.difference) <= far]
    ends = [0.0, *(end for d in near for end in (d.interval or [d.difference]))]
    room = 0.06 * ((max(ends) - min(ends)) or 1.0)
    return min(ends) - room, max(ends) + room


def _draw(ax: Any, d: Difference, at: float, colour: str, marker: str, limits: tuple[float, float]) -> None:
    """One difference with its interval; at the edge, as an arrow with its value, where it lies beyond."""
    low, high = limits
    inside = low <= d.difference <= high
    face = colour if is_shown(d) else "white"
    if inside:
        if d.interval is not None:
            ax.hlines(at, *d.interval, color=colour, linewidth=1.2, alpha=0.7)
        ax.plot(d.difference, at, marker, color=colour, markerfacecolor=face, markersize=4.5)
        return
    right = d.difference > high
    edge = high if right else low
    ax.plot(edge, at, ">" if right else "<", color=colour, markerfacecolor=face, markersize=4.5, clip_on=False)
    ax.annotate(
        f"{d.difference:+.3f}",
        (edge, at),
        (-7 if right else 7, 0),
        textcoords="offset points",
        ha="right" if right else "left",
        va="bottom" if at < round(at) else "top",  # y grows downwards; the splits' values do not meet
        fontsize=6,
        color=colour,
    )
