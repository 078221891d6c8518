"""The rows that every report of a multimodal model needs: what the text alone says, and what fusion adds to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from deepmlf_llm.statistics.seeds import Interval, t_interval
from deepmlf_llm.study.blocks import Block, Paragraph, Table
from deepmlf_llm.study.configurations import NOTHING, Configuration
from deepmlf_llm.study.statistics import Effect, paired, reading, seeds_named, signed
from deepmlf_llm.tasks.metrics import higher_is_better

_HEAD = (
    "The text alone: the text head on the last token's state, trained beside the rest, as a mean over the "
    "configurations of a backbone, then mean and interval over seeds. What a configuration gains over this row comes "
    "from fusion tokens, MM Blocks, audio and vision together; a run without modalities or a baseline tells them apart."
)


def fusion_over_text(found: Sequence[Configuration], axes: Sequence[str], metric: str) -> list[Block]:
    """What fusion adds at each backbone: paired with the run that is the same and hears and sees nothing.

    Nothing where no run reads the text alone.
    """
    rows, told = [], 0
    for effect, backbone, alone, fused in text_pairs(found, axes, metric):
        numbers = (effect.pairs, effect.change.n, alone.text(), fused.text(), signed(effect.change))
        rows.append((*backbone, effect.after, *numbers, reading(effect.change), seeds_named(effect.change)))
        told += effect.change.excludes_zero
    if not rows:
        return []
    better = "higher" if higher_is_better(metric) else "lower"
    about = (
        f"Test {metric} ({better} is better) of the same settings without and with modalities: fusion tokens, "
        f"MM Blocks and heads are in both; both read the text. Paired by seed. {told} of {len(rows)} rows exclude zero."
    )
    columns = ("base model", "LM layers", "with", "pairs", "seeds", "text alone", "fused", f"change of {metric}")
    return [
        Paragraph(about),
        Table((*columns, "reading", "seeds that would tell it"), rows, (1, 3, 4, 5, 6, 7, 9)),
    ]


def text_pairs(
    found: Sequence[Configuration], axes: Sequence[str], metric: str
) -> list[tuple[Effect, tuple[Any, ...], Interval, Interval]]:
    """For each backbone and each choice of modalities: the change, the backbone, and the two means over the pairs."""
    rows = []
    for backbone in dict.fromkeys(c.backbone for c in found):
        here = [c for c in found if c.backbone == backbone]
        alone = [c for c in here if c.values.get("modalities") == NOTHING]
        for what in dict.fromkeys(c.values.get("modalities") for c in here):
            pairs = [
                (a, b)
                for a in alone
                for b in here
                if what != NOTHING and b.values.get("modalities") == what and _rest(a, axes) == _rest(b, axes)
            ]
            effect = paired("modalities", NOTHING, what, pairs, metric)
            if effect is not None:
                means = [_mean_of([pair[side] for pair in pairs], metric) for side in (0, 1)]
                rows.append((effect, backbone, means[0], means[1]))
    return rows


def _rest(c: Configuration, axes: Sequence[str]) -> str:
    return c.rest("modalities", axes)


def _mean_of(cells: Sequence[Configuration], metric: str) -> Interval:
    """Over configurations, then over seeds."""
    return t_interval(_by_seed([c.by_seed(metric) for c in cells]))


def _by_seed(found: Sequence[dict[int, float]]) -> list[float]:
    seeds = sorted({seed for values in found for seed in values})
    means = []
    for seed in seeds:
        values = [own[seed] for own in found if seed in own]
        means.append(math.fsum(values) / len(values))
    return means


def what_to_beat(baselines: Sequence[Configuration], metrics: Sequence[str]) -> list[Block]:
    """A row for each baseline of each backbone; nothing where there is none."""
    rows = []
    for c in baselines:
        values = [c.by_seed(metric) for metric in metrics]
        texts = [t_interval(list(v.values())).text() if v else "undefined" for v in values]
        rows.append([*c.backbone, c.values["baseline"], len(c.records), *texts])
    if not rows:
        return []
    columns = ("base model", "LM layers", "baseline", "seeds", *(f"test {metric}" for metric in metrics))
    about = "What has to be beaten, on the same splits; chosen on validation. What draws nothing has one seed."
    return [Paragraph(about), Table(columns, rows, [1, *range(3, len(columns))])]


def text_alone(found: Sequence[Configuration], metrics: Sequence[str]) -> list[Block]:
    """A row for each backbone, of the text head; nothing where no cell has one.

    Args:
        found: the configurations.
        metrics: of the test split, in the order of the columns.
    """
    rows = []
    for backbone in dict.fromkeys(c.backbone for c in found):
        cells = [c for c in found if c.backbone == backbone]
        texts = [_over_seeds(cells, metric) for metric in metrics]
        if any(texts):
            rows.append([*backbone, *(text or "undefined" for text in texts)])
    if not rows:
        return []
    columns = ["base model", "LM layers", *(f"test {metric}" for metric in metrics)]
    return [Paragraph(_HEAD), Table(columns, rows, range(1, len(columns)))]


def _over_seeds(cells: Sequence[Configuration], metric: str) -> str:
    means = _by_seed([cell.head_by_seed("text", metric) for cell in cells])
    return t_interval(means).text() if means else ""
