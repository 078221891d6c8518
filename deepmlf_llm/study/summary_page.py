"""A study on one page, read in a minute: question, answer, two figures, cost, and what cannot be told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from deepmlf_llm.statistics.seeds import t_interval
from deepmlf_llm.study.blocks import Block, Heading, Paragraph, Table
from deepmlf_llm.study.configurations import Configuration, axis_name, counted, gather, is_baseline, varied
from deepmlf_llm.study.plots import Plot
from deepmlf_llm.study.statistics import SEEDS_COLUMN, Effect, effects, seeds_named, signed
from deepmlf_llm.tasks.metrics import higher_is_better

_COSTS = ("flops", "parameters", "seconds")
_OF_BASES = "lm_parameters"  # what base models are drawn along: their names have no order


def summary_blocks(study: dict[str, Any], records: Sequence[dict[str, Any]], plots: Sequence[Plot] = ()) -> list[Block]:
    """The page's content, from the same rows as the report.

    Args:
        study: ``study.json``.
        records: ``cell.json`` of the cells that have ended.
        plots: of the report; two of them are shown.
    """
    metric, found = study["metric"], gather(records)
    axes = varied(found)
    blocks: list[Block] = [Heading(study["title"], 1)]
    if not found:
        return [*blocks, Paragraph(f"None of {len(study['cells'])} cells has finished: nothing can be said yet.")]
    rows = effects(found, axes, metric)
    blocks += [Heading("Question"), Paragraph(_question(found, axes, metric))]
    blocks += [Heading("Answer"), *_answer(found, axes, rows, metric)]
    blocks += _figures(plots, rows, metric)
    blocks += [Heading("Cost"), Paragraph(_cost(records))]
    blocks += [Heading("What cannot be told"), *_untold(study, records, found, rows, metric)]
    return blocks


def _question(found: Sequence[Configuration], axes: Sequence[str], metric: str) -> str:
    parts = []
    for axis in axes:
        values = list(dict.fromkeys(str(c.values.get(axis)) for c in found))
        parts.append(f"{axis_name(axis)} ({', '.join(values)})")
    seeds = sorted({seed for c in found for seed in c.records})
    what = f"How does test {metric} change with {', '.join(parts)}?" if parts else f"What is test {metric}?"
    better = "higher" if higher_is_better(metric) else "lower"
    return f"{what} {counted(len(found), 'configurations')}, seeds {', '.join(map(str, seeds))}; {better} is better."


def _answer(found: Sequence[Configuration], axes: Sequence[str], rows: Sequence[Effect], metric: str) -> list[Block]:
    """Only rows whose interval excludes zero; and the configuration that validation chooses."""
    told = [effect for effect in rows if effect.change.excludes_zero]
    blocks: list[Block] = []
    if told:
        table = [
            (
                axis_name(effect.axis),
                f"{effect.before} to {effect.after}",
                signed(effect.change),
                "better" if (effect.change.mean > 0) == higher_is_better(metric) else "worse",
            )
            for effect in told
        ]
        blocks.append(Table(("setting", "from, to", f"change of test {metric}", "reading"), table, (2,)))
        blocks.append(
            Paragraph(
                f"{len(told)} of {len(rows)} changes of one setting exclude zero (95 %, over seeds, all else equal); "
                "one in twenty would by chance alone."
            )
        )
    elif rows:
        blocks.append(Paragraph(f"None of {len(rows)} changes of one setting is shown by these seeds."))
    best = _chosen(found, metric)
    if best is not None:
        value = t_interval(list(best.by_seed(metric).values())) if best.by_seed(metric) else None
        named = best.label(axes) if axes else "the one configuration"
        blocks.append(
            Paragraph(
                f"Best on validation: {named}; its test {metric}: "
                + ("undefined." if value is None else f"{value.text()}.")
            )
        )
    return blocks


def _chosen(found: Sequence[Configuration], metric: str) -> Configuration | None:
    """By validation: the best of many on test would flatter itself."""
    judged = [(fmean(values.values()), c) for c in found if (values := c.by_seed(metric, "validation"))]
    if not judged:
        return None
    choose = max if higher_is_better(metric) else min
    return choose(judged, key=lambda pair: pair[0])[1]


def _figures(plots: Sequence[Plot], rows: Sequence[Effect], metric: str) -> list[Block]:
    """Of the report's: against the size of the LM or the setting that shows most, and against what it costs."""
    drawn = {plot.name: plot for plot in plots}
    clearest = sorted(rows, key=_clearness, reverse=True)
    settings = [*(effect.axis for effect in clearest), "layers", "blocks", "num_fusion_tokens"]
    if any(effect.axis == "base" for effect in rows):  # a study over LMs asks what their size does
        settings.insert(0, _OF_BASES)
    chosen = []
    for names in (settings, _COSTS):
        chosen += [drawn[name] for axis in names if (name := f"{metric}-{axis}") in drawn][:1]
    return [*chosen]


def _clearness(effect: Effect) -> float:
    return abs(effect.change.mean) / effect.change.half if effect.change.half else 0.0


def _cost(records: Sequence[dict[str, Any]]) -> str:
    done = [record for record in records if record["status"] == "finished" and not is_baseline(record)]
    fitted = sum(record["status"] == "finished" and is_baseline(record) for record in records)
    trains = [record["train_info"] for record in done]
    flops = math.fsum(float(train["step_flops"]) * train["steps"] for train in trains)
    seconds = [train["seconds"] for train in trains if train.get("seconds") is not None]
    memory = [m for train in trains if (m := (train.get("peak_memory_mb") or {}).get("resident")) is not None]
    parts = [f"{len(done)} cells, {flops:.2g} FLOPs of training steps (counted on paper)"]
    if fitted:
        are = "1 cell that fits a baseline and is" if fitted == 1 else f"{fitted} cells that fit a baseline and are"
        parts[0] += f", beside {are} not counted here"
    if seconds:
        cut = len(done) - len(seconds)
        parts.append(
            f"{math.fsum(seconds) / 3600:.2f} hours of training" + (f" ({cut} cut cells not counted)" if cut else "")
        )
    if memory:
        parts.append(f"at most {max(memory):,.0f} MB of memory")
    sizes = [train["parameters"]["trainable"] for train in trains]
    span = f"{min(sizes):,} to {max(sizes):,}" if min(sizes) < max(sizes) else f"{sizes[0]:,}"
    parts.append(f"{span} trained parameters")
    return "; ".join(parts) + "."


def _untold(
    study: dict[str, Any],
    records: Sequence[dict[str, Any]],
    found: Sequence[Configuration],
    rows: Sequence[Effect],
    metric: str,
) -> list[Block]:
    blocks: list[Block] = []
    table = []
    for effect in rows:
        if not effect.change.excludes_zero:
            named = seeds_named(effect.change)
            table.append((axis_name(effect.axis), f"{effect.before} to {effect.after}", signed(effect.change), named))
    if table:
        columns = ("setting", "from, to", f"change of test {metric}", "seeds that would tell it")
        blocks.append(Table(columns, table, (2, 3)))
        blocks.append(Paragraph(SEEDS_COLUMN))
    failed = sum(record["status"] == "failed" for record in records)
    missing = len(study["cells"]) - len(records)
    counts = sorted({len(c.records) for c in found})
    seeds = f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else counted(counts[0], "seeds")
    text = f"Nor anything about other data, base models or settings than those in the question, with {seeds} each."
    text += f" {counted(failed, 'cells')} failed." if failed else ""
    text += f" {counted(missing, 'cells')} {'has' if missing == 1 else 'have'} not ended." if missing else ""
    return [*blocks, Paragraph(text + " Every row is in report.md; report.tex has the tables.")]
