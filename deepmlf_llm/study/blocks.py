"""What a report is made of, and the report as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from deepmlf_llm.markdown import fenced, link, plain
from deepmlf_llm.study.plots import Plot


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Table:
    """Rows of text, or numbers as text; ``numbers``: the columns set to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    numbers: Sequence[int] = field(default=())


@dataclass(frozen=True)
class Code:
    """Lines as they came, folded away under a summary."""

    summary: str
    lines: Sequence[str]


Block = Heading | Paragraph | Table | Code | Plot

PLOTS = "plots"


def to_markdown(blocks: Sequence[Block]) -> str:
    """The report as Markdown; plots are linked as files in ``plots/``."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {plain(block.text)}"
    if isinstance(block, Paragraph):
        return plain(block.text)
    if isinstance(block, Plot):
        return f"!{link(block.alt, f'{PLOTS}/{block.name}.svg')}\n\n{plain(block.caption)}"
    if isinstance(block, Code):
        return f"{plain(block.summary)}:\n\n{fenced(block.lines)}"
    aligned = ["---:" if i in block.numbers else "---" for i in range(len(block.columns))]
    lines = [_line(block.columns), aligned, *map(_line, block.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _line(cells: Sequence[Any]) -> list[str]:
    return [plain(str(cell)) for cell in cells]
