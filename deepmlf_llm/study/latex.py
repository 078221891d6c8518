"""The report's tables as LaTeX, to be ``\\input`` into a paper: booktabs, and longtable where a page may not hold one.

Nothing in a cell can act as a command: every sign that TeX reads is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from deepmlf_llm.markdown import one_line
from deepmlf_llm.study.blocks import Block, Heading, Paragraph, Table

LONG = 40
"""Rows; more of them do not fit on a page."""

_SIGNS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "[": "{[}",  # behind a line's end it would open an option
    "]": "{]}",
    "*": "{*}",  # the same
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": "$-$",
    "·": r"$\cdot$",
}
_NUMBER = re.compile(r"[+-]?[\d.,]*\d( ± [\d.]+)?")
_HEAD = (
    "% Tables of a scale study. In the preamble: \\usepackage{booktabs,longtable}; then \\input{report}."
    "\n% Written by `deepmlf study`; the same results give the same file."
)


def to_latex(blocks: Sequence[Block], title: str) -> str:
    """All tables of a report, in its order.

    Args:
        blocks: of the report. The heading above a table is its caption, the paragraph right above it a note under it.
        title: of the study, in each caption.
    """
    parts, heading, note = [_HEAD], "", ""
    numbers: dict[str, int] = {}
    for block in blocks:
        if isinstance(block, Heading) and block.level > 1:
            heading, note = block.text, ""
        elif isinstance(block, Paragraph):
            note = block.text
        elif isinstance(block, Table):
            name = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "table"
            numbers[name] = numbers.get(name, 0) + 1
            label = f"tab:study-{name}" + (f"-{numbers[name]}" if numbers[name] > 1 else "")
            parts.append(_table(block, f"{title}: {heading}" if heading else title, label, note))
            note = ""
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """``text`` as TeX prints it, letter by letter, on one line."""
    return "".join(_SIGNS.get(sign, sign) for sign in one_line(text))


def _table(table: Table, caption: str, label: str, note: str) -> str:
    columns = "".join("r" if i in table.numbers else "l" for i in range(len(table.columns)))
    head = _row(table.columns, ())
    body = [_row(row, table.numbers) for row in table.rows]
    named = f"\\caption{{{escaped(caption)}.}}\\label{{{label}}}"
    under = [f"\\par\\smallskip\\parbox{{\\linewidth}}{{\\footnotesize {escaped(note)}}}"] if note else []
    if len(body) > LONG:
        top = [f"{named}\\\\", "\\toprule", head, "\\midrule", "\\endhead", "\\bottomrule", "\\endlastfoot"]
        lines = [f"\\begin{{longtable}}{{{columns}}}", *top, *body, "\\end{longtable}"]
        return "\n".join(["{\\footnotesize", *lines, *under, "}"])
    rows = ["\\toprule", head, "\\midrule", *body, "\\bottomrule"]
    inner = [f"\\begin{{tabular}}{{{columns}}}", *rows, "\\end{tabular}"]
    return "\n".join(["\\begin{table}[htbp]", "\\centering\\footnotesize", named, *inner, *under, "\\end{table}"])


def _row(cells: Sequence[Any], numbers: Sequence[int]) -> str:
    return " & ".join(_cell(cell, i in numbers) for i, cell in enumerate(cells)) + r" \\"


def _cell(cell: Any, number: bool) -> str:
    text = one_line(str(cell))
    if number and text[:1] in "+-" and _NUMBER.fullmatch(text):
        return f"${text[0]}${escaped(text[1:])}"  # a minus, not a hyphen
    return escaped(text)
