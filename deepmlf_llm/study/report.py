"""The report of a study, from its stored results alone: the same results give the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deepmlf_llm.files import make_directory, write_aside, writing
from deepmlf_llm.statistics.seeds import t_interval
from deepmlf_llm.study.blocks import PLOTS, Block, Heading, Paragraph, Table, to_markdown
from deepmlf_llm.study.configurations import (
    Configuration,
    axis_name,
    gather,
    is_baseline,
    kinds_of_machine,
    together,
    varied,
)
from deepmlf_llm.study.directory import CELLS, StudyDirectory
from deepmlf_llm.study.gate_plots import gates_plot
from deepmlf_llm.study.html import to_html
from deepmlf_llm.study.latex import to_latex
from deepmlf_llm.study.lm_tables import at_each, base_models, places
from deepmlf_llm.study.paper_claims import paper_claims
from deepmlf_llm.study.perplexity import read_measured
from deepmlf_llm.study.plots import Plot, Quantity, heads_plot, of_base_models, pareto, quality_plot, quantities
from deepmlf_llm.study.report_tables import cell_table, cost_table, failed_cells, surroundings
from deepmlf_llm.study.results import read_all, write_parquet
from deepmlf_llm.study.statistics import SEEDS_COLUMN, effects, reading, seeds_named, signed
from deepmlf_llm.study.summary_page import summary_blocks
from deepmlf_llm.study.text_alone import fusion_over_text, text_alone, what_to_beat
from deepmlf_llm.tasks.metrics import METRIC_DEFINITIONS

MARKDOWN, PAGE, TABLES, SUMMARY = "report.md", "report.html", "report.tex", "summary.html"


def write_report(directory: StudyDirectory) -> list[Path]:
    """Writes ``report.md`` with its plots, ``report.html``, the tables as ``report.tex``, one page to read in a minute
    (``summary.html``) and the Parquet of all cells. Several processes may do so at once; the last one's files stay.

    Raises:
        RunError: no study there, or nothing of its cells; what was there is left.
    """
    directory.check_results()
    study = directory.read()
    cells = directory.planned()
    records = read_all(directory, cells)
    if (directory.path / CELLS).is_dir():  # else there are none, or the Parquet is what they were read from
        write_parquet(directory, records)
    measured = read_measured(directory)
    blocks = report_blocks(study, records, directory.others({cell.name for cell in cells}), measured)
    plots = [block for block in blocks if isinstance(block, Plot)]
    _write_plots(directory.path, plots)
    texts = {
        MARKDOWN: to_markdown(blocks),
        PAGE: to_html(blocks, study["title"]),
        TABLES: to_latex(blocks, study["title"]),
        SUMMARY: to_html(summary_blocks(study, records, plots), study["title"]),
    }
    for name, text in texts.items():
        write_aside(directory.path / name, text, shared=True)
    return [directory.path / name for name in texts]


def _write_plots(path: Path, plots: Sequence[Plot]) -> None:
    """One by one: a folder of them could not be exchanged while another process does the same."""
    make_directory(path / PLOTS)
    names = {f"{plot.name}.svg" for plot in plots}
    for plot in plots:
        write_aside(path / PLOTS / f"{plot.name}.svg", plot.svg, shared=True)
    for earlier in (path / PLOTS).glob("*.svg"):
        if earlier.name not in names:
            with writing(earlier):
                earlier.unlink(missing_ok=True)


def report_blocks(
    study: dict[str, Any],
    records: Sequence[dict[str, Any]],
    others: int = 0,
    measured: Sequence[Mapping[str, Any]] = (),
) -> list[Block]:
    """The report's content.

    Args:
        study: ``study.json``.
        records: ``cell.json`` of the cells that have ended, in the grid's order.
        others: ended cells in the folder that are not of this grid, data or code.
        measured: how well each base model reads (:mod:`~deepmlf_llm.study.perplexity`).
    """
    metric, planned = study["metric"], len(study["cells"])
    found, baselines = gather(records), gather(records, baselines=True)
    failed = [record for record in records if record["status"] == "failed"]
    axes = varied(found)
    blocks: list[Block] = [Heading(study["title"], 1), Paragraph(_summary(study, records, planned))]
    blocks += [Paragraph(note) for note in study["notes"]]
    if found:
        blocks += [Paragraph(_how_to_read(found, metric)), *_bundles(found), *_effects(found, axes, metric)]
        if added := fusion_over_text(found, axes, metric):
            blocks += [Heading("What fusion adds over the text"), *added]
        if models := base_models(found, measured, axes, metric):
            blocks += [Heading("Base models"), *models]
        if within := at_each(found, axes, metric):
            blocks += [Heading("What changed at each base model", 3), *within]
        if claims := paper_claims(found, axes, metric):
            blocks += [Heading("What the paper claims"), *claims]
        blocks += [Heading("Quality"), *_quality(found, axes, metric, measured)]
        if gates := gates_plot(found, axes):
            blocks += [Heading("Gates"), gates]
        if heads := heads_plot(found, axes, metric):
            blocks += [Heading("Each modality alone"), heads]
        blocks += [Heading("Results"), *_configurations(found, baselines, axes, metric)]
        blocks += [Heading("Every cell"), *cell_table(records, axes)]
        blocks += [Heading("Cost"), *cost_table(records)]
    if failed:
        blocks += [Heading("Failed cells"), *failed_cells(failed)]
    blocks += [Heading("Around it"), *surroundings(study, records, others)]
    return blocks


def _summary(study: dict[str, Any], records: Sequence[dict[str, Any]], planned: int) -> str:
    finished = [record for record in records if record["status"] == "finished"]
    failed = len(records) - len(finished)
    parts = [f"{len(finished)} of {planned} cells finished"]
    parts += [f"{failed} failed"] if failed else []
    parts += [f"{planned - len(records)} not ended yet"] if planned > len(records) else []
    text = ", ".join(parts) + "."
    if not finished:
        return text
    data = finished[0]["meta_info"]["data"]
    used = data.get("used", {}).get("train", {}).get("utterances")
    runs = [record for record in finished if not is_baseline(record)]
    if not runs:
        return f"{text} All of them fit a baseline."
    steps = sorted({record["train_info"]["steps"] for record in runs})
    seeds = sorted({record["run_info"]["seed"] for record in runs})
    span = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
    name = "the embedded set (real sentences, synthetic audio and vision)" if _embedded(study) else data.get("name")
    trained = f"{used} training utterances" if used else "training utterances"
    fitted = len(finished) - len(runs)
    which = f"{fitted} of the cells fit a baseline; each other one" if fitted else "Each cell"
    return (
        f"{text} Data: {name}, {trained}. {which} trains {span} steps with one of {len(seeds)} seeds "
        f"({', '.join(map(str, seeds))}); the adapter that is best on validation is read on test once. "
        f"Base models: {', '.join(dict.fromkeys(record['run_info']['values']['base'] for record in finished))}."
    )


def _embedded(study: dict[str, Any]) -> bool:
    return study["fixed"].get("data", "embedded") == "embedded"


def _how_to_read(found: Sequence[Configuration], metric: str) -> str:
    seeds = min(len(c.records) for c in found)
    text = (
        "Intervals are 95 % t-intervals for the mean over seeds, on this data set: they say how far chance in "
        "initialisation and order reaches, and nothing about other data."
    )
    if seeds == 1:
        return (
            text + " Some configurations have one seed only: they have no interval, and nothing can be said about them."
        )
    if seeds == 2:
        text += " With two seeds they are 12.7 standard errors wide each way, so only large differences can show."
    definition = METRIC_DEFINITIONS.get(metric)
    return f"{text} {metric}: {definition}" if definition else text


def _bundles(found: Sequence[Configuration]) -> list[Block]:
    """Settings that vary as one."""
    names = list(dict.fromkeys(name for c in found for name in c.values))
    bundled = together(found, [name for name in names if len({str(c.values.get(name)) for c in found}) > 1])
    firsts = dict.fromkeys(bundled.values())
    texts = [", ".join(map(axis_name, (f, *(n for n, first in bundled.items() if first == f)))) for f in firsts]
    return [Paragraph(f"Varied as one, under the first name: {text}.") for text in texts]


def _effects(found: Sequence[Configuration], axes: Sequence[str], metric: str) -> list[Block]:
    rows = []
    for effect in effects(found, axes, metric):
        change = effect.change
        numbers = (effect.pairs, change.n, signed(change))
        told = (reading(change), seeds_named(change))
        rows.append((axis_name(effect.axis), f"{effect.before} to {effect.after}", *numbers, *told))
    if not rows:
        return []
    return [
        Heading("What changed, all else equal"),
        Paragraph(
            f"Change of test {metric} from one value of a setting to the next, over all pairs of configurations that "
            "differ in nothing else: the mean of a seed's pairs, then mean and interval over seeds. "
            f"Of {len(rows)} such rows, one in twenty would exclude zero by chance alone. {SEEDS_COLUMN}"
        ),
        Table(
            ("setting", "from, to", "pairs", "seeds", f"change of {metric}", "reading", "seeds that would tell it"),
            rows,
            (2, 3, 4, 6),
        ),
    ]


def _quality(
    found: Sequence[Configuration], axes: Sequence[str], metric: str, measured: Sequence[Mapping[str, Any]]
) -> list[Block]:
    blocks: list[Block] = []
    silent = []
    drawn = quantities()
    kinds = kinds_of_machine(record for c in found for record in c.records.values())
    if kinds > 1:
        del drawn["seconds"]
    of_bases = of_base_models(places(found, measured, metric)) if "base" in axes else {}
    for quantity in (*of_bases.values(), *drawn.values()):
        plot = quality_plot(found, quantity, axes, metric)
        if plot is None:
            silent.append(quantity.label)
        else:
            blocks.append(plot)
    lead = (
        "Points are means over seeds, bars their intervals (cut at the edge of the plot), small dots the seeds. "
        "Lines join configurations that differ in nothing but x."
    )
    if silent:
        lead += f" Not drawn, for they have one value only: {', '.join(silent)}."
    if kinds > 1:
        lead += f" Nor are seconds, for the cells ran on {kinds} kinds of machine, or on other numbers of threads."
    return [Paragraph(lead), *blocks, *_fronts(found, drawn.values(), axes, metric)]


def _fronts(found: Sequence[Configuration], drawn: Iterable[Quantity], axes: Sequence[str], metric: str) -> list[Block]:
    """Which configurations lie on a Pareto front, and on which."""
    costs = {}
    for quantity in drawn:
        points = [(x, c) for c in found if (x := quantity.of(c)) is not None and c.by_seed(metric)]
        if not quantity.joined and len({x for x, _ in points}) > 1:
            costs[quantity.label] = [id(c) for _, c in pareto(points, metric)]
    rows = []
    for c in found:
        on = [label for label, kept in costs.items() if id(c) in kept]
        if on:
            rows.append(
                [
                    *(str(c.values.get(a)) for a in axes),
                    t_interval([*c.by_seed(metric).values()]).text(),
                    *[", ".join(on)],
                ]
            )
    if not rows:
        return []
    columns = [*map(axis_name, axes), f"test {metric}", "no other is cheaper and better, by"]
    return [Paragraph("Pareto fronts, by means over seeds:"), Table(columns, rows, range(len(axes), len(axes) + 1))]


def _configurations(
    found: Sequence[Configuration], baselines: Sequence[Configuration], axes: Sequence[str], metric: str
) -> list[Block]:
    usual = ("mae", "corr", "acc7", "acc2_non0", "f1_non0", "acc2", "f1", "acc", "f1_weighted", "f1_macro")
    shown = [name for name in (metric, *usual) if _has(found, name)]
    shown = list(dict.fromkeys(shown))
    rows = []
    for c in found:
        values = [c.by_seed(name) for name in shown]
        texts = [t_interval(list(v.values())).text() if v else "undefined" for v in values]
        rows.append([*(str(c.values.get(axis)) for axis in axes), len(c.records), *texts])
    columns = [*(axis_name(axis) for axis in axes), "seeds", *(f"test {name}" for name in shown)]
    table = Table(columns, rows, range(len(axes), len(columns)))
    return [table, *what_to_beat(baselines, shown), *text_alone(found, shown)]


def _has(found: Sequence[Configuration], metric: str) -> bool:
    return any(c.by_seed(metric) for c in found)
