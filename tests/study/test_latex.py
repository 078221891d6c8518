"""Mirrors ``deepmlf_llm/study/latex.py``: nothing is compiled, the structure is held against the rows."""

from __future__ import annotations

import itertools
import re

import pytest

from deepmlf_llm.study.blocks import Heading, Paragraph, Table
from deepmlf_llm.study.latex import LONG, ON_ITS_SIDE, escaped, to_latex

BODY = re.compile(r"(?:\\midrule\n(?!\\endhead)|\\endlastfoot\n)(.*?)\n(?:\\bottomrule|\\end\{longtable\})", re.DOTALL)


def bodies(text: str) -> list[list[list[str]]]:
    """Each table's rows of cells."""
    found = []
    for body in BODY.findall(text):
        lines = body.split("\n")
        assert all(line.endswith(r" \\") for line in lines)
        found.append([re.split(r"(?<!\\) & ", line.removesuffix(r" \\")) for line in lines])
    return found


def test_every_table_of_the_report_is_there_with_all_its_rows(reported_study):
    """Held against the rows of report.md, which are written by other code."""
    lines = (reported_study / "report.md").read_text().splitlines()
    rules = [i for i, line in enumerate(lines) if line.startswith("| ---")]
    tables = [list(itertools.takewhile(lambda line: line.startswith("| "), lines[i + 1 :])) for i in rules]
    text = (reported_study / "report.tex").read_text()
    found = bodies(text.replace(r"\char34{}", ""))
    assert len(found) == len(tables) >= 5
    for rows, expected in zip(found, tables, strict=True):
        cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in expected]
        assert [len(row) for row in rows] == [len(row) for row in cells]
        for row, other in zip(rows, cells, strict=True):
            assert [re.findall(r"\d+", cell) for cell in row[1:]] == [re.findall(r"\d+", cell) for cell in other[1:]]
    for name in ("toprule", "midrule", "bottomrule"):
        assert text.count(f"\\{name}") == len(tables)
    assert len(set(re.findall(r"\\label\{(.*?)\}", text))) == len(tables)
    for kind in ("table", "tabular", "longtable", "sidewaystable", "adjustbox"):
        assert text.count(f"\\begin{{{kind}}}") == text.count(f"\\end{{{kind}}}")
    assert text.count("{") - text.count("\\{") == text.count("}") - text.count("\\}")
    assert "\\hline" not in text


def test_what_tex_reads_is_escaped():
    hostile = '50% of $x_1 & {y}# \\input{/etc/passwd} ~^ <a> | "q" `z`\nsecond line'
    text = escaped(hostile)
    assert "\\input" not in text
    assert "\n" not in text
    assert text.startswith(r"50\% of \$x\_1 \& \{y\}\# \textbackslash{}input\{/etc/passwd\}")
    assert r"\char34{}q\char34{}" in text  # in OT1 too, which has no \textquotedbl
    bare = re.sub(r"\\(char34\{\}|text\w+\{\}|[%$&#_{}])|\{[\[\]*]\}", "", text)
    assert not set(bare) & set('\\%$&#_{}~^<>|"`')


@pytest.mark.parametrize("sign", ["[1mm]", "*"])
def test_a_row_that_begins_like_an_option_of_the_line_end_is_none(sign):
    (rows,) = bodies(to_latex([Table(("a",), [["x"], [sign]])], "t"))
    assert rows[1][0][0] == "{"


def test_numbers_have_a_minus_and_their_own_side():
    text = to_latex([Heading("Results"), Paragraph("Why."), Table(("a-b", "n"), [["-x", "-0.5 ± 0.1"]], (1,))], "T_1")
    assert r"-x & $-$0.5 $\pm$ 0.1 \\" in text
    assert r"\begin{tabular}{lr}" in text
    assert r"\caption{T\_1: Results.}\label{tab:study-results}" in text
    assert r"\footnotesize Why.}" in text


def test_a_long_table_may_break():
    rows = [[f"cell_{i}"] for i in range(LONG + 1)]
    text = to_latex([Heading("Every cell"), Table(("cell",), rows)], "T")
    assert r"\begin{longtable}{l}" in text
    assert r"\begin{tabular}" not in text
    assert len(bodies(text)[0]) == LONG + 1
    assert r"cell\_40 \\" in text


def test_what_is_wider_than_a_line_is_made_to_fit_or_lies_on_its_side():
    def table(letters: int, rows: int = 2) -> str:
        return to_latex([Heading("Cost"), Table(("cell", "n"), [["x" * letters, i] for i in range(rows)], (1,))], "T")

    assert "adjustbox}{" not in table(50)
    assert r"\begin{table}" in table(90)
    assert r"\begin{adjustbox}{max width=\linewidth}" in table(90)
    text = table(200, rows=ON_ITS_SIDE + 5)
    assert "longtable}{" not in text
    assert text.count(r"\begin{sidewaystable}") == text.count(r"\begin{adjustbox}{max width=\linewidth}") == 2
    assert text.count(r"\label") == 1
    assert "T: Cost, continued." in text
    assert [len(rows) for rows in bodies(text)] == [ON_ITS_SIDE, 5]
    packages = re.search(r"\\usepackage\{(.*?)\}", text)[1].split(",")
    assert packages == ["booktabs", "longtable", "rotating", "adjustbox"]
