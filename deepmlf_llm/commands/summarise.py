"""Mean, deviation, best and worst of several finished runs, as a table in Markdown.

    deepmlf summarise runs/NAME/seed-* [--output DIR]

`deepmlf train --seeds` does this at its end for its own runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deepmlf_llm.commands.shell import RecipeParser, program
from deepmlf_llm.files import make_directory


def main(argv: Sequence[str] | None = None) -> None:
    parser = RecipeParser(description=__doc__.split("\n")[0], prog=program("summarise"))
    parser.add_argument("runs", nargs="+", type=Path, help="directories of finished runs")
    parser.add_argument("--output", type=Path, help="directory that gets summary.json and summary.md")
    options = parser.parse_args(argv)
    from deepmlf_llm.training.summary import read_results, summarise, table, write_summary

    summary = summarise(read_results(options.runs))
    print(table(summary), end="")
    if options.output is not None:
        make_directory(options.output)
        write_summary(options.output, summary)
