"""A comparison as JSON, and as a page of Markdown that a paper's table can be made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from deepmlf_llm.markdown import code
from deepmlf_llm.statistics.bootstrap import described
from deepmlf_llm.statistics.comparing import POLARITY, Comparison, Difference, Measured, Row
from deepmlf_llm.tasks.metrics import METRIC_DEFINITIONS


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """All of a comparison, for a JSON file."""
    return {
        "schema": 1,
        "dataset": comparison.dataset,
        "split": comparison.split,
        "utterances": comparison.utterances,
        "bootstrap": described(comparison.resamples, comparison.seed),
        "rows": [asdict(row) for row in comparison.rows],
        "comparisons": comparison.comparisons,
        "adjustment": "Holm",
        "differences": [{**asdict(d), "reading": d.reading} for d in comparison.differences],
    }


def metric_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: what each entry measures."""
    names = list(dict.fromkeys(name for row in comparison.rows for name in row.metrics))
    rows = [
        [_named(row), str(row.runs), *(_measured(row.metrics.get(name)) for name in names)] for row in comparison.rows
    ]
    return ["run", "seeds", *names], rows


def difference_rows(differences: Sequence[Difference]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: each difference with its interval and p-values."""
    rows = []
    for d in differences:
        bounds = "undefined" if d.interval is None else f"[{d.interval[0]:+.4f}, {d.interval[1]:+.4f}]"
        rows.append([d.other, d.metric, f"{d.difference:+.4f}", bounds, _p(d.p), _p(d.p_adjusted), d.reading])
    return ["run", "metric", "difference", "95 % interval", "p", "p (Holm)", "reading"], rows


def summary(comparison: Comparison) -> str:
    """How the numbers were made, in three sentences."""
    text = (
        f"{comparison.utterances} utterances of split {comparison.split} ({comparison.dataset}). Intervals: 95 %, "
        f"percentile bootstrap over utterances and, where there are several, over seeds; {comparison.resamples} "
        f"resamples, seed {comparison.seed}."
    )
    if comparison.differences:
        text += (
            f" {comparison.comparisons} comparisons: of as many true nulls {0.05 * comparison.comparisons:.1f} would "
            "have p < .05 by chance, so read the column that Holm's procedure adjusts."
        )
        if 2 * comparison.comparisons / (comparison.resamples + 1) >= 0.05:
            text += (
                f" {comparison.resamples} resamples are too few for as many comparisons to show anything: take more."
            )
    return text


def to_markdown(comparison: Comparison) -> str:
    """The page."""
    names, rows = metric_rows(comparison)
    parts = ["# Comparison", summary(comparison), _table(names, rows)]
    if comparison.differences:
        columns, lines = difference_rows(comparison.differences)
        first = code(comparison.differences[0].reference)
        parts += [f"## Differences from {first}", _table(columns, lines)]
    defined = [f"- {code(name)}: {text}" for name in names if (text := METRIC_DEFINITIONS.get(name))]
    return "\n\n".join([*parts, "## Metrics", "\n".join(defined)]) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join([code(first, in_table=True), *rest])} |" for first, *rest in rows]
    return "\n".join(lines)


def _named(row: Row) -> str:
    return row.name if row.head == POLARITY else f"{row.name}: {row.head.removesuffix('_polarity')} alone"


def _measured(found: Measured | None) -> str:
    if found is None or found.mean != found.mean:
        return "undefined"
    text = f"{found.mean:.4f}"
    if found.deviation is not None:
        text += f" ± {found.deviation:.4f}"
    return text if found.interval is None else f"{text} [{found.interval[0]:.4f}, {found.interval[1]:.4f}]"


def _p(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
