"""A comparison of two studies as rows, as a page of Markdown, and for a JSON file."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from deepmlf_llm.statistics.seeds import Interval, t_interval
from deepmlf_llm.study.blocks import Block, Heading, Paragraph, Table, to_markdown
from deepmlf_llm.study.comparing import StudyComparison
from deepmlf_llm.study.configurations import Configuration, counted, varied
from deepmlf_llm.study.grid import BASELINE
from deepmlf_llm.tasks.metrics import higher_is_better

OVERALL, OVERALL_BUT = "all of them", "all but the baselines"


def rows(found: StudyComparison) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: each configuration of both, and all of them together."""
    lines = [
        [
            label,
            str(len(match.first)) if match.paired else f"{len(match.first)}, {len(match.second)} (not paired)",
            t_interval(list(match.first.values())).text(),
            t_interval(list(match.second.values())).text(),
            change_text(match.change),
            reading(match.change, found.metric),
        ]
        for label, match in zip(_labels(found), found.matches, strict=True)
    ]
    if found.overall is not None:
        change = found.overall
        name = OVERALL_BUT if any(match.baseline for match in found.matches) else OVERALL
        lines.append([name, str(change.n), "", "", change_text(change), reading(change, found.metric)])
    what = f"{found.split} {found.metric}"
    return ["configuration", "seeds", f"{what}, first", f"{what}, second", "change", "reading"], lines


def _labels(found: StudyComparison) -> list[str]:
    """What tells a match from the others of its kind; what a base model brings only where the rest does not."""
    labels: dict[int, str] = {}
    for baselines in (False, True):
        ours = [match for match in found.matches if match.baseline == baselines]
        if not ours:
            continue
        for side in ("named", "values"):
            all_of = [Configuration(getattr(match, side)) for match in ours]
            telling = {*varied(all_of), BASELINE} - {"num_layers"}
            axes = [axis for axis in found.axes if axis in telling]
            texts = [c.label(axes, " · ") or "the one configuration" for c in all_of]
            if len(set(texts)) == len(texts):
                break
        labels |= {id(match): text for match, text in zip(ours, texts, strict=True)}
    return [labels[id(match)] for match in found.matches]


def change_text(change: Interval) -> str:
    """``+0.012 ± 0.034``"""
    return f"{change.mean:+.3f}" + ("" if change.half is None else f" ± {change.half:.3f}")


def reading(change: Interval, metric: str) -> str:
    """In words: what the interval allows to say of the second study."""
    if change.half is None:
        return "one seed: nothing can be said"
    if not change.excludes_zero:
        return "no difference is shown"
    return "better" if (change.mean > 0) == higher_is_better(metric) else "worse"


def summary(found: StudyComparison) -> str:
    """What was compared, and how to read it."""
    first, second = found.names
    paired = all(match.paired for match in found.matches)
    how = "paired by seed" if paired else "paired by seed where both have it, else Welch's for independent means"
    left = [
        f"{counted(count, 'cells')} only in {name}"
        for count, name in zip(found.only, found.names, strict=True)
        if count
    ]
    many = len(found.matches)
    both = counted(many, "configurations") + (" is" if many == 1 else " are")
    rest = f" Not compared: {', '.join(left)}." if left else ""
    return (
        f"First: {first}. Second: {second}. {both} in both.{rest} Changes are second "
        f"minus first, {how}, with 95 % t-intervals over seeds: they say how far chance in initialisation and order "
        f"reaches, on these data. Of {len(found.matches)} such rows, one in twenty would exclude zero by chance alone."
    )


def to_blocks(found: StudyComparison) -> list[Block]:
    """The page's content."""
    columns, lines = rows(found)
    blocks: list[Block] = [Heading("Two studies", 1), Paragraph(summary(found)), Heading("Settings that differ")]
    if found.differs:
        blocks.append(Table(("setting", "first", "second"), [list(row) for row in found.differs]))
    else:
        blocks.append(Paragraph("None: the studies are the same but for chance, and for the cells that only one has."))
    return [*blocks, Heading("Configurations that both have"), Table(columns, lines, (1, 2, 3, 4))]


def to_page(found: StudyComparison) -> str:
    """Markdown."""
    return to_markdown(to_blocks(found))


def to_dict(found: StudyComparison) -> dict[str, Any]:
    """All of it, for a JSON file."""
    return {"schema": 1, **asdict(found)}
