"""The report as one page that needs nothing else: styles inside, plots as data URIs, no script, no network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

from deepmlf_llm.study.blocks import Block, Code, Heading, Paragraph, Table
from deepmlf_llm.study.plots import Plot

_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 84rem; padding: 1rem; background: #fff; color: #1a1a1a;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
p { max-width: 46rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; break-inside: avoid; } figure img { display: block; width: 100%; max-width: 34rem; height: auto; }
figcaption { font-size: .875rem; color: #333; max-width: 34rem; }
.table { overflow-x: auto; max-width: 100%;
  background: linear-gradient(90deg, #fff 30%, #fff0) 0 0 / 3rem 100% no-repeat local,
    linear-gradient(270deg, #fff 30%, #fff0) 100% 0 / 3rem 100% no-repeat local,
    linear-gradient(90deg, #0003, #0000) 0 0 / .9rem 100% no-repeat,
    linear-gradient(270deg, #0003, #0000) 100% 0 / .9rem 100% no-repeat; }
 .table:focus-visible { outline: 2px solid #0072B2; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top;
  white-space: nowrap; }
td.long { white-space: normal; min-width: 16rem; } th { border-bottom: 2px solid #888; } .number { text-align: right; }
summary { cursor: pointer; }
pre { overflow-x: auto; background: #f5f5f5; padding: .6rem; font-size: .8rem; white-space: pre-wrap; }
@media print { body { max-width: none; font-size: 10pt; } .table { overflow: visible; } table { font-size: 7pt; }
  th, td { white-space: normal; padding: .15rem .3rem; } }
"""
_LONG = 60  # characters; longer cells may wrap, but not a name


def to_html(blocks: Sequence[Block], title: str) -> str:
    """The page; neighbouring plots stand side by side where the page is wide enough."""
    parts: list[str] = []
    inside = False
    for block in blocks:
        if isinstance(block, Plot) != inside:
            parts.append("</div>" if inside else '<div class="plots">')
            inside = not inside
        parts.append(_html(block))
    if inside:
        parts.append("</div>")
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{escape(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{escape(block.text)}</p>"
    if isinstance(block, Code):
        lines = escape("\n".join(block.lines))
        return f"<details><summary>{escape(block.summary)}</summary><pre>{lines}</pre></details>"
    if isinstance(block, Table):
        return _table(block)
    picture = base64.b64encode(block.svg).decode()
    return (
        f'<figure><img alt="{escape(block.alt)}" src="data:image/svg+xml;base64,{picture}">'
        f"<figcaption>{escape(block.caption)}</figcaption></figure>"
    )


def _table(table: Table) -> str:
    head = "".join(f"<th{_look(i, table, '')}>{escape(column)}</th>" for i, column in enumerate(table.columns))
    rows = [
        "<tr>" + "".join(f"<td{_look(i, table, cell)}>{escape(str(cell))}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in table.rows
    ]
    body = "\n".join(rows)
    # Wide tables scroll on their own; the focus lets a keyboard scroll them.
    inner = f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"
    return f'<div class="table" tabindex="0">{inner}</div>'


def _look(column: int, table: Table, cell: Any) -> str:
    if column in table.numbers:
        return ' class="number"'
    return ' class="long"' if len(str(cell)) > _LONG and " " in str(cell) else ""
