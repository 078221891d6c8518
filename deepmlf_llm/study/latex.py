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
PAGE = 345
"""Points of a line of LaTeX's own page; a table that takes more is made smaller."""
SHRUNK = 1.35
"""Lines that a table may take and still be read when it is made to fit one; a wider one lies on its side."""
ON_ITS_SIDE = 30
"""Rows of such a page."""
_LETTER, _GAP = 4.2, 12.0  # points, in \footnotesize

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
    '"': r"\char34{}",  # \textquotedbl has no sign in OT1, TeX's default
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
    "% Tables of a scale study. In the preamble: \\usepackage{booktabs,longtable,rotating,adjustbox}; then"
    " \\input{report}."
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
    if (wide := _lines(table)) > SHRUNK or (wide > 1 and len(body) > LONG):
        return _on_its_side(columns, head, body, named, caption, under)
    if len(body) > LONG:
        top = [f"{named}\\\\", "\\toprule", head, "\\midrule", "\\endhead", "\\bottomrule", "\\endlastfoot"]
        lines = [f"\\begin{{longtable}}{{{columns}}}", *top, *body, "\\end{longtable}"]
        return "\n".join(["{\\footnotesize", *lines, *under, "}"])
    inner = _tabular(columns, head, body, wide > 1)
    return "\n".join(["\\begin{table}[htbp]", "\\centering\\footnotesize", named, *inner, *under, "\\end{table}"])


def _on_its_side(columns: str, head: str, body: list[str], named: str, caption: str, under: list[str]) -> str:
    """Pages of their own, for what no line holds; the caption says which go on."""
    pages = []
    for first in range(0, max(len(body), 1), ON_ITS_SIDE):
        title = f"\\caption[]{{{escaped(caption)}, continued.}}" if first else named
        note = under if first + ON_ITS_SIDE >= len(body) else []
        inner = _tabular(columns, head, body[first : first + ON_ITS_SIDE], True)
        pages += ["\\begin{sidewaystable}", "\\centering\\footnotesize", title, *inner, *note, "\\end{sidewaystable}"]
    return "\n".join(pages)


def _tabular(columns: str, head: str, body: list[str], fit: bool) -> list[str]:
    rows = ["\\toprule", head, "\\midrule", *body, "\\bottomrule"]
    inner = [f"\\begin{{tabular}}{{{columns}}}", *rows, "\\end{tabular}"]
    return ["\\begin{adjustbox}{max width=\\linewidth}", *inner, "\\end{adjustbox}"] if fit else inner


def _lines(table: Table) -> float:
    """How many lines' widths a table takes."""
    rows = [table.columns, *table.rows]
    letters = sum(max(len(one_line(str(row[i]))) for row in rows if i < len(row)) for i in range(len(table.columns)))
    return (_LETTER * letters + _GAP * len(table.columns)) / PAGE


def _row(cells: Sequence[Any], numbers: Sequence[int]) -> str:
    return " & ".join(_cell(cell, i in numbers) for i, cell in enumerate(cells)) + r" \\"


def _cell(cell: Any, number: bool) -> str:
    text = one_line(str(cell))
    if number and text[:1] in "+-" and _NUMBER.fullmatch(text):
        return f"${text[0]}${escaped(text[1:])}"  # a minus, not a hyphen
    return escaped(text)
