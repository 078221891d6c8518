"""The table and the figure of an ablation, from its stored results alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from deepmlf_llm.ablation.figure import differences_in, draw_differences, is_shown
from deepmlf_llm.ablation.plan import AblationPlan, Variant
from deepmlf_llm.ablation.store import Store
from deepmlf_llm.errors import RunError
from deepmlf_llm.files import write_aside
from deepmlf_llm.markdown import code
from deepmlf_llm.paths import shown
from deepmlf_llm.statistics.bootstrap import SEED
from deepmlf_llm.statistics.comparing import POLARITY, RESAMPLES, Comparison, Difference, Row, compare
from deepmlf_llm.statistics.comparison_report import to_dict

TABLE, FIGURE, NUMBERS = "ablation.md", "ablation.svg", "ablation.json"
SPLITS = {"valid": "validation", "test": "test"}
METRIC = "mae"
_ALSO = ("corr", "acc2_non0", "acc7")
_A_COMPARISON = 200
"""Resamples for each p-value. The least one is 2 in their number, and Holm's procedure multiplies it by the number of
p-values: with too few resamples a large table could show no difference, however clear."""


def write_report(plan: AblationPlan, directory: Path, resamples: int | None = None) -> Path:
    """Writes ``ablation.md``, ``ablation.svg`` and ``ablation.json`` beside the stored results.

    Args:
        plan: names, order and reference.
        directory: of the store.
        resamples: of the bootstrap; None: 10,000, or as many as the number of p-values asks for.

    Returns:
        The table's path.

    Raises:
        RunError: the reference has no results, or of other settings.
        DataError: the store is damaged.
    """
    store = Store(directory)
    found = {split: _compared(plan, store, split, resamples) for split in SPLITS}
    write_aside(directory / TABLE, _page(plan, store, found))
    write_aside(directory / FIGURE, draw_differences(plan, found, METRIC, SPLITS))
    numbers = {
        "name": plan.name,
        "holm": "over variants, each metric by itself",
        **{SPLITS[split]: to_dict(c) for split, c in found.items()},
    }
    write_aside(directory / NUMBERS, json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")
    return directory / TABLE


def _compared(plan: AblationPlan, store: Store, split: str, resamples: int | None) -> Comparison:
    entries = store.entries(filter(store.holds, plan.variants), len(plan.data), split)
    if plan.reference not in entries:
        raise RunError(
            f"{shown(store.directory)}: no whole run of the reference {plan.reference!r} as it is set; run it first"
        )
    first = entries.pop(plan.reference)
    if resamples is None:
        resamples = max(RESAMPLES, _A_COMPARISON * len(entries))
    return compare([first, *entries.values()], POLARITY, resamples, SEED, by_metric=True)


def _page(plan: AblationPlan, store: Store, found: Mapping[str, Comparison]) -> str:
    valid, test = found["valid"], found["test"]
    folds = f", {len(plan.data)} folds put together" if len(plan.data) > 1 else ""
    parts = [
        f"# {plan.title}",
        f"{valid.utterances} utterances of validation and {test.utterances} of test{folds}. Mean ± deviation over "
        f"seeds. Differences from *{plan.reference}* in MAE (negative: better), with 95 % intervals of a bootstrap "
        f"over utterances and seeds ({test.resamples} resamples), paired by utterance, and by seed where both ran with "
        "the same. In bold: p < .05 after Holm's "
        f"correction over all variants of the split ({_p_values(valid)} and {_p_values(test)} p-values); MAE is what "
        "counts here. Corr, Acc2 non0 and Acc7 are of the test split.",
        "\n".join(_reading(name, found[split]) for split, name in SPLITS.items()),
    ]
    stale = [v.name for v in plan.variants if v.name in store.facts["variants"] and not store.holds(v)]
    if stale:
        parts.append(f"Left out, because their stored results are of other settings: {', '.join(stale)}.")
    for group in dict.fromkeys(variant.group for variant in plan.variants):
        rows = [_line(variant, store, found) for variant in plan.variants if variant.group == group]
        done = [row for row in rows if row]
        if done:
            parts += [f"## {group[:1].upper()}{group[1:]}", "\n".join([*_HEAD, *done])]
    parts.append(f"![differences in MAE]({FIGURE})")
    parts.append("Filled: a difference is shown. An arrow with its value: farther off than the axis reaches.")
    return "\n\n".join(parts) + "\n"


def _p_values(comparison: Comparison) -> int:
    return sum(d.p is not None for d in differences_in(comparison, METRIC).values())


def _reading(name: str, comparison: Comparison) -> str:
    """Which variants differ on a split, in a line."""
    shown: dict[str, list[str]] = {"better": [], "worse": []}
    differences = differences_in(comparison, METRIC).values()
    for d in differences:
        if is_shown(d):
            shown[d.reading].append(f"*{d.other}*")
    told = [f"shown to be {word}: {', '.join(names) or 'none'}" for word, names in shown.items()]
    others = len(differences) - sum(map(len, shown.values()))
    return f"- MAE on {name}: {'; '.join(told)}; no difference is shown for the other {others}."


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


def _difference(comparison: Comparison, name: str) -> str:
    d: Difference | None = differences_in(comparison, METRIC).get(name)
    if d is None:
        return "reference"
    text = _short(d.difference, sign=True)
    if is_shown(d):
        text = f"**{text}**"
    if d.interval is not None:
        text += f" [{_short(d.interval[0], True)}, {_short(d.interval[1], True)}]"
    return text
