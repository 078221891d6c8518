"""The table and the figure of an ablation, from its stored results alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepmlf_llm.ablation.plan import AblationPlan, Variant
from deepmlf_llm.ablation.store import Store
from deepmlf_llm.errors import RunError
from deepmlf_llm.files import write_aside
from deepmlf_llm.markdown import code
from deepmlf_llm.paths import shown
from deepmlf_llm.statistics.bootstrap import SEED
from deepmlf_llm.statistics.comparing import POLARITY, Comparison, Difference, Row, compare
from deepmlf_llm.statistics.comparison_report import to_dict
from deepmlf_llm.statistics.style import COLOURS, figure, legend_below, svg

TABLE, FIGURE, NUMBERS = "ablation.md", "ablation.svg", "ablation.json"
SPLITS = {"valid": "validation", "test": "test"}
METRIC = "mae"
_ALSO = ("corr", "acc2_non0", "acc7")
_ROW = 0.26  # inches of the figure


def write_report(plan: AblationPlan, directory: Path, resamples: int = 10_000) -> Path:
    """Writes ``ablation.md``, ``ablation.svg`` and ``ablation.json`` beside the stored results.

    Args:
        plan: names, order and reference.
        directory: of the store.
        resamples: of the bootstrap.

    Returns:
        The table's path.

    Raises:
        RunError: the reference has no results.
        DataError: the store is damaged.
    """
    store = Store(directory)
    found = {split: _compared(plan, store, split, resamples) for split in SPLITS}
    write_aside(directory / TABLE, _page(plan, store, found))
    write_aside(directory / FIGURE, _figure(plan, found))
    numbers = {"name": plan.name, **{SPLITS[split]: to_dict(c) for split, c in found.items()}}
    write_aside(directory / NUMBERS, json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")
    return directory / TABLE


def _compared(plan: AblationPlan, store: Store, split: str, resamples: int) -> Comparison:
    entries = store.entries([variant.name for variant in plan.variants], len(plan.data), split)
    if plan.reference not in entries:
        raise RunError(f"{shown(store.directory)}: no whole run of the reference {plan.reference!r}; run it first")
    first = entries.pop(plan.reference)
    return compare([first, *entries.values()], POLARITY, resamples, SEED)


def _page(plan: AblationPlan, store: Store, found: Mapping[str, Comparison]) -> str:
    valid, test = found["valid"], found["test"]
    folds = f", {len(plan.data)} folds put together" if len(plan.data) > 1 else ""
    parts = [
        f"# {plan.title}",
        f"{valid.utterances} utterances of validation and {test.utterances} of test{folds}. Mean ± deviation over "
        f"seeds. Differences from *{plan.reference}* in MAE (negative: better), with 95 % intervals of a bootstrap "
        f"over utterances and seeds, paired in both ({test.resamples} resamples). In bold: p < .05 after Holm's "
        "correction over all metrics and variants of the split. Corr, Acc2 non0 and Acc7 are of the test split.",
    ]
    for group in dict.fromkeys(variant.group for variant in plan.variants):
        rows = [_line(variant, store, found) for variant in plan.variants if variant.group == group]
        done = [row for row in rows if row]
        if done:
            parts += [f"## {group[:1].upper()}{group[1:]}", "\n".join([*_HEAD, *done])]
    parts.append(f"![differences in MAE]({FIGURE})")
    return "\n\n".join(parts) + "\n"


_COLUMNS = ("variant", "changed", "trained", "seeds", "validation MAE", "difference", "test MAE", "difference")
_HEAD = [f"| {' | '.join(_COLUMNS)} | Corr | Acc2 non0 | Acc7 |", "|---" * (len(_COLUMNS) + len(_ALSO)) + "|"]


def _line(variant: Variant, store: Store, found: Mapping[str, Comparison]) -> str | None:
    rows = {split: _row(comparison, variant.name) for split, comparison in found.items()}
    test = rows["test"]
    if test is None or rows["valid"] is None:
        return None
    cells = [variant.name, _changes(variant), _count(store.trained(variant.name)), str(test.runs)]
    for split, comparison in found.items():
        cells += [_number(rows[split], METRIC), _difference(comparison, variant.name)]
    cells += [_number(test, name) for name in _ALSO]
    return f"| {' | '.join(cells)} |"


def _row(comparison: Comparison, name: str) -> Row | None:
    return next((row for row in comparison.rows if row.name == name and row.head == POLARITY), None)


def _changes(variant: Variant) -> str:
    text = ", ".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in variant.changes.items())
    return code(text, in_table=True) if text else ""


def _count(parameters: int | None) -> str:
    return "" if parameters is None else f"{parameters / 1e6:.2f} M"


def _number(row: Row | None, metric: str) -> str:
    measured = None if row is None else row.metrics.get(metric)
    if measured is None or measured.mean != measured.mean:
        return "undefined"
    return _short(measured.mean) + ("" if measured.deviation is None else f" ± {_short(measured.deviation)}")


def _short(value: float, sign: bool = False) -> str:
    """.723, as the field's tables."""
    text = f"{value:+.3f}" if sign else f"{value:.3f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def _found(comparison: Comparison, name: str) -> Difference | None:
    return next((d for d in comparison.differences if d.other == name and d.metric == METRIC), None)


def _difference(comparison: Comparison, name: str) -> str:
    d = _found(comparison, name)
    if d is None:
        return "reference"
    text = _short(d.difference, sign=True)
    if d.p_adjusted is not None and d.p_adjusted < 0.05:
        text = f"**{text}**"
    if d.interval is not None:
        text += f" [{_short(d.interval[0], True)}, {_short(d.interval[1], True)}]"
    return text


def _figure(plan: AblationPlan, found: Mapping[str, Comparison]) -> bytes:
    """Differences from the reference with their intervals, one line a variant."""
    names = [v.name for v in plan.variants if _found(found["test"], v.name) is not None]
    with figure(6.0, 1.4 + _ROW * max(1, len(names))) as (drawn, (ax,)):
        handles = []
        for place, (split, comparison) in enumerate(found.items()):
            shift = 0.14 if place else -0.14
            differences: Sequence[Any] = [_found(comparison, name) for name in names]
            rows = [row + shift for row in range(len(names))]
            for row, d in zip(rows, differences, strict=True):
                if d.interval is not None:
                    ax.hlines(row, *d.interval, color=COLOURS[place], linewidth=1.2, alpha=0.7)
            values = [d.difference for d in differences]
            handles += ax.plot(values, rows, "os"[place], color=COLOURS[place], markersize=4.5, label=SPLITS[split])
        ax.axvline(0, color="#555555", linewidth=1)
        ax.set_yticks(range(len(names)), names)
        ax.invert_yaxis()
        ax.set_xlabel(f"MAE, difference from {plan.reference} (left: better)")
        legend_below(drawn, handles, 2)
        return svg(drawn)
