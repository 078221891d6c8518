"""What the paper claims (arXiv 2504.11082), against the rows of a study: what holds here, and what cannot be told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from deepmlf_llm.statistics.seeds import Interval, t_interval
from deepmlf_llm.study.blocks import Block, Paragraph, Table
from deepmlf_llm.study.configurations import BACKBONE, Configuration
from deepmlf_llm.study.statistics import Effect, paired, seeds_named, signed
from deepmlf_llm.tasks.metrics import higher_is_better

BEST_BLOCKS, ENOUGH_TOKENS = (5, 7), (8, 20)
_DEPTH = ("blocks", "placement", "fusion_layers")
_TOKENS = "num_fusion_tokens"
_DEEP = "five to seven MM Blocks are best"
_FEW = "8 to 20 fusion tokens are enough"
_PAYS = "deeper fusion pays more in larger LMs"
_GROWS = "a larger LM is better"
_ABOUT = (
    "A claim holds here where the interval over seeds of a row excludes zero in its favour, on this data set and with "
    "these settings. Pairs differ in what the row names and in nothing else."
)

Row = tuple[str, str, str, str, str]


def paper_claims(found: Sequence[Configuration], axes: Sequence[str], metric: str) -> list[Block]:
    """The table; of a claim whose setting does not vary it says so.

    Args:
        found: the configurations.
        axes: settings that vary.
        metric: of the test split.
    """
    if not {"blocks", _TOKENS, *BACKBONE}.intersection(axes):
        return []
    better = 1 if higher_is_better(metric) else -1
    rows = [
        *_depth(found, axes, metric, better),
        *_tokens(found, axes, metric, better),
        *_size(found, axes, metric, better),
    ]
    columns = ("the paper", "here", f"change of {metric}", "reading", "seeds that would tell it")
    return [Paragraph(_ABOUT), Table(columns, rows, (2, 4))]


def _depth(found: Sequence[Configuration], axes: Sequence[str], metric: str, better: int) -> list[Row]:
    low, high = BEST_BLOCKS
    counts = _numbers(found, "blocks")
    inside, outside = [n for n in counts if low <= n <= high], [n for n in counts if not low <= n <= high]
    if not inside or not outside:
        return [_not_varied(_DEEP, f"MM Blocks: {_listed(counts)}")]
    rows = []
    for other in outside:
        effect = _pooled(found, axes, metric, "blocks", [other], inside, _DEPTH)
        if effect is not None:
            rows.append(_row(_DEEP, f"{other} to {_listed(inside)} MM Blocks", effect.change, better))
    return rows or [_not_varied(_DEEP, "no pairs that differ in depth alone")]


def _tokens(found: Sequence[Configuration], axes: Sequence[str], metric: str, better: int) -> list[Row]:
    low, high = ENOUGH_TOKENS
    counts = _numbers(found, _TOKENS)
    inside = [n for n in counts if low <= n <= high]
    fewer, more = [n for n in counts if n < low], [n for n in counts if n > high]
    rows = []
    for other in fewer if inside else ():
        effect = _pooled(found, axes, metric, _TOKENS, [other], inside, (_TOKENS,))
        if effect is not None:
            rows.append(_row(_FEW, f"{other} to {_listed(inside)} tokens: fewer are worse", effect.change, better))
    steps = [*pairwise(inside), *((inside[-1], n) for n in more if inside)]
    for before, after in steps:
        effect = _pooled(found, axes, metric, _TOKENS, [before], [after], (_TOKENS,))
        if effect is not None:
            text = f"{before} to {after} tokens: more add nothing"
            rows.append(_row(_FEW, text, effect.change, better, _nothing_gained))
    return rows or [_not_varied(_FEW, f"fusion tokens: {_listed(counts)}")]


def _size(found: Sequence[Configuration], axes: Sequence[str], metric: str, better: int) -> list[Row]:
    """Of the smallest and the largest LM."""
    sized = sorted({c.backbone: c.lm_parameters for c in found}.items(), key=lambda pair: pair[1])
    if len(sized) < 2:
        return [_not_varied(_GROWS, "one LM"), _not_varied(_PAYS, "one LM")]
    ends = [[c for c in found if c.backbone == backbone] for backbone in (sized[0][0], sized[-1][0])]
    named = f"{_words(sized[0][0])} to {_words(sized[-1][0])}"
    rows = []
    grown = paired("base", 0, 1, _pairs(ends[0], ends[1], axes, BACKBONE), metric)
    if grown is not None:
        rows.append(_row(_GROWS, named, grown.change, better))
    counts = _numbers(found, "blocks")
    gains = [_gain(end, axes, metric, counts) for end in ends]
    seeds = sorted(gains[0].keys() & gains[1].keys())
    if len(counts) < 2 or not seeds:
        return [*rows, _not_varied(_PAYS, f"MM Blocks: {_listed(counts)}")]
    text = f"{counts[0]} to {counts[-1]} MM Blocks, {named}: change of the change"
    change = t_interval([gains[1][seed] - gains[0][seed] for seed in seeds])
    return [*rows, _row(_PAYS, text, change, better)]


def _gain(cells: Sequence[Configuration], axes: Sequence[str], metric: str, counts: Sequence[int]) -> dict[int, float]:
    """Seed -> what the most MM Blocks change over the fewest, as a mean over pairs that have the seed."""
    few, many = ([c for c in cells if c.values.get("blocks") == count] for count in (counts[0], counts[-1]))
    both = [(a.by_seed(metric), b.by_seed(metric)) for a, b in _pairs(few, many, axes, _DEPTH)]
    seeds = {seed for a, b in both for seed in a.keys() & b.keys()}
    whole = [(a, b) for a, b in both if seeds <= a.keys() & b.keys()]
    return {seed: sum(b[seed] - a[seed] for a, b in whole) / len(whole) for seed in seeds} if whole else {}


def _pooled(
    found: Sequence[Configuration],
    axes: Sequence[str],
    metric: str,
    axis: str,
    before: Sequence[int],
    after: Sequence[int],
    without: Sequence[str],
) -> Effect | None:
    first, second = ([c for c in found if c.values.get(axis) in side] for side in (before, after))
    return paired(axis, before, after, _pairs(first, second, axes, without), metric)


def _pairs(
    first: Sequence[Configuration], second: Sequence[Configuration], axes: Sequence[str], without: Sequence[str]
) -> list[tuple[Configuration, Configuration]]:
    kept = [axis for axis in axes if axis not in without]
    return [(a, b) for a in first for b in second if a.rest("", kept) == b.rest("", kept)]


def _verdict(change: Interval, better: int) -> str:
    if change.half is None or not change.excludes_zero:
        return "cannot be told"
    return "holds here" if change.mean * better > 0 else "the opposite is shown"


def _nothing_gained(change: Interval, better: int) -> str:
    """An absence is not shown; what is excluded is."""
    if change.half is None:
        return "cannot be told"
    if change.excludes_zero:
        return "more are better" if change.mean * better > 0 else "more are worse"
    most = change.high if better > 0 else -change.low
    return f"cannot be told; a gain above {most:.3f} is excluded"


def _row(
    claim: str, here: str, change: Interval, better: int, verdict: Callable[[Interval, int], str] = _verdict
) -> Row:
    return claim, here, signed(change), verdict(change, better), seeds_named(change)


def _not_varied(claim: str, why: str) -> Row:
    return claim, why, "", "cannot be told: not varied here", ""


def _numbers(found: Sequence[Configuration], axis: str) -> list[int]:
    return sorted({value for c in found if isinstance(value := c.values.get(axis), int)})


def _listed(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts)) or "not stated"


def _words(backbone: tuple[Any, ...]) -> str:
    return f"{backbone[0]} ({backbone[1]} layers)"
