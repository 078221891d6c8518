"""How an adapter does without a modality, or with a noisy one: a grid of shares and strengths from one loaded model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from deepmlf_llm.data.corruption import Corruption, check_modalities
from deepmlf_llm.errors import ConfigError
from deepmlf_llm.statistics.bootstrap import RESAMPLES, draw, interval
from deepmlf_llm.statistics.style import COLOURS, LINES, MARKERS, figure, legend_below, svg
from deepmlf_llm.statistics.sums import MetricSums
from deepmlf_llm.training.evaluation import Evaluator
from deepmlf_llm.training.scores import Score

MOST = 256  # conditions of a grid
TEXT_CACHE_BYTES = 2 << 30  # the frozen text is the same in all of them: kept where it needs no more


@dataclass(frozen=True)
class Condition:
    """One point of a grid.

    Attributes:
        corruption: what was done.
        absent: modality -> how many utterances lacked it.
        score: what was measured.
        change: metric -> its difference from the untouched split, and the 95 % interval over the same utterances.
    """

    corruption: Corruption
    absent: Mapping[str, int]
    score: Score
    change: Mapping[str, tuple[float, list[float] | None]]

    @property
    def name(self) -> str:
        """In words."""
        parts = [f"{name} missing {share:g}" for name, share in self.corruption.missing.items() if share]
        parts += [f"{name} noise {strength:g}" for name, strength in self.corruption.noise.items() if strength]
        return ", ".join(parts) or "as it is"


def grid(missing: Mapping[str, Sequence[float]], noise: Mapping[str, Sequence[float]], seed: int) -> list[Corruption]:
    """All combinations of the levels, the untouched split first.

    Raises:
        ConfigError: more than :data:`MOST`.
    """
    levels = [*missing.values(), *noise.values()]
    size = math.prod(len(values) for values in levels)
    if size > MOST:
        raise ConfigError(f"{size} combinations of --missing and --noise: expected at most {MOST}; give fewer levels")
    cells = [Corruption(dict.fromkeys(missing, 0.0), dict.fromkeys(noise, 0.0), seed)]
    for values in product(*levels):
        shares = dict(zip(missing, values[: len(missing)], strict=True))
        strengths = dict(zip(noise, values[len(missing) :], strict=True))
        cells.append(Corruption(shares, strengths, seed))
    return list({str((c.missing, c.noise)): c for c in cells}.values())


def measure(evaluator: Evaluator, cells: Sequence[Corruption]) -> list[Condition]:
    """Evaluates each condition; the first of them is what the others are compared with.

    Raises:
        ConfigError: a modality that the adapter does not have, or noise for features that are not standardised.
    """
    for cell in cells:
        check_modalities(cell, evaluator.config.modalities, "--missing, --noise")
    if len(cells) > 1:
        evaluator.keep_texts(TEXT_CACHE_BYTES)
    found: list[Condition] = []
    for cell in cells:
        score, rows = evaluator.score(cell), evaluator.rows(cell)
        absent = {name: rows.absent(name) for name in evaluator.config.modalities}
        found.append(Condition(cell, absent, score, _change(found[0].score if found else score, score)))
    return found


def _change(before: Score, after: Score) -> dict[str, tuple[float, list[float] | None]]:
    sums = [[MetricSums.of(s.predictions.head(), s.predictions.labels, s.predictions.rules)] for s in (before, after)]
    a, b = draw(sums, False, RESAMPLES)
    differences = (b.measured - a.measured)[:, 0]
    return {
        name: (float(value), interval(row))
        for name, value, row in zip(a.names, differences, b.resampled - a.resampled, strict=True)
    }


def to_dict(conditions: Sequence[Condition]) -> dict[str, Any]:
    """For a JSON file."""
    return {
        "mask_seed": conditions[0].corruption.seed,
        "noise_unit": "standard deviation over the training split",
        "conditions": [
            {
                "missing": dict(c.corruption.missing),
                "noise": dict(c.corruption.noise),
                "absent": dict(c.absent),
                "metrics": dict(c.score.metrics),
                "intervals": dict(c.score.intervals),
                "change": {name: {"difference": d, "interval": bounds} for name, (d, bounds) in c.change.items()},
            }
            for c in conditions
        ],
    }


def table(conditions: Sequence[Condition], metric: str) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: what was done, how many utterances lack what, the metrics, the change of one of them."""
    names = list(conditions[0].score.metrics)
    absent = list(conditions[0].absent)
    rows = []
    for c in conditions:
        difference, bounds = c.change[metric]
        spread = "" if bounds is None else f" [{bounds[0]:+.4f}, {bounds[1]:+.4f}]"
        values = (c.score.metrics[name] for name in names)
        rows.append(
            [c.name, *(str(c.absent[name]) for name in absent), *map(_number, values), f"{difference:+.4f}{spread}"]
        )
    return ["condition", *(f"without {name}" for name in absent), *names, f"change of {metric}"], rows


def _number(value: float) -> str:
    return "undefined" if value != value else f"{value:.4f}"


def markdown(conditions: Sequence[Condition], metric: str) -> str:
    """The grid as a page."""
    columns, rows = table(conditions, metric)
    first = conditions[0]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    return (
        f"# Missing and noisy modalities\n\n{len(first.score.predictions.ids)} utterances of split "
        f"{first.score.predictions.split}; masks and noise by seed {first.corruption.seed} and utterance id. Missing: "
        "share of utterances without the modality. Noise: Gaussian, in standard deviations of the training split. "
        f"Change of {metric} with its 95 % interval, over the same utterances.\n\n" + "\n".join(lines) + "\n"
    )


def plot(conditions: Sequence[Condition], metric: str) -> bytes:
    """An SVG: the metric along the axis with most levels, a line for each combination of the others."""
    axes = [("missing", name) for name in conditions[0].corruption.missing]
    axes += [("noise", name) for name in conditions[0].corruption.noise]
    levels = {axis: sorted({_level(c, axis) for c in conditions}) for axis in axes}
    along = max(axes, key=lambda axis: len(levels[axis]))
    lines: dict[str, list[Condition]] = {}
    for c in conditions:
        rest = [f"{name} {kind} {_level(c, (kind, name)):g}" for kind, name in axes if (kind, name) != along]
        lines.setdefault(", ".join(rest) or along[1], []).append(c)
    with figure() as (drawn, (ax,)):
        handles = []
        for place, (label, line) in enumerate(lines.items()):
            line = sorted(line, key=lambda c: _level(c, along))
            xs, ys = [_level(c, along) for c in line], [c.score.metrics[metric] for c in line]
            look = {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}
            style = LINES[place // len(COLOURS) % len(LINES)]
            handles += ax.plot(xs, ys, linestyle=style, linewidth=1.4, label=label, **look)
            for x, c in zip(xs, line, strict=True):
                bounds = c.score.intervals.get(metric)
                if bounds is not None:
                    ax.vlines(x, *bounds, color=look["color"], linewidth=1.1, alpha=0.4)
        what = "share of utterances without" if along[0] == "missing" else "noise, in standard deviations, on"
        ax.set_xlabel(f"{what} {along[1]}")
        ax.set_ylabel(f"{conditions[0].score.predictions.split} {metric}")
        legend_below(drawn, handles, 2)
        return svg(drawn)


def _level(condition: Condition, axis: tuple[str, str]) -> float:
    kind, name = axis
    levels: Mapping[str, float] = getattr(condition.corruption, kind)
    return levels[name]
