"""Compares two studies: cells matched by their settings, what changed with intervals over seeds, settings that differ.

  deepmlf study compare runs/scale-mosi runs/scale-mosi-longer --output comparison.json

What all cells of one study have, and all of the other have otherwise, is named and left out of the match; cells that
only one study has are counted. Studies that share no cell, or were measured on different data, are refused.
"""

import json
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from deepmlf_llm.commands.shell import RecipeParser, one_of, print_columns, program, run_recipe
from deepmlf_llm.errors import ConfigError


def build_parser() -> RecipeParser:
    name = f"{program('study')} compare"
    parser = RecipeParser(prog=name, description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("first", type=Path, metavar="A", help="folder of the study that the other is compared with")
    add("second", type=Path, metavar="B", help="folder of the other study")
    add("--metric", help="to compare (default: that of A)")
    add("--split", type=one_of("test", "validation"), default="test", help="test or validation (default: test)")
    add("--output", type=Path, help="JSON file to write, with a page of Markdown beside it; must not exist yet")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(argv)
    from deepmlf_llm.files import check_place, write_aside
    from deepmlf_llm.study import comparison_page as page
    from deepmlf_llm.study.comparing import compare_studies
    from deepmlf_llm.training.metrics_log import finite

    markdown = None if options.output is None else options.output.with_suffix(".md")
    for path in (options.output, markdown):
        if path is not None:
            check_place(path)
            if path.exists() or options.output == markdown:
                raise ConfigError(
                    f"--output {options.output}: {path.name} exists or is not a name for JSON; name another"
                )
    found = compare_studies(options.first, options.second, options.metric, options.split)
    print(page.summary(found))
    if found.differs:
        print_columns("Settings that differ", [("setting", "first", "second"), *found.differs])
    columns, rows = page.rows(found)
    print_columns("Configurations that both have", [columns, *rows])
    if options.output is not None and markdown is not None:
        write_aside(markdown, page.to_page(found))
        write_aside(options.output, json.dumps(finite(page.to_dict(found)), indent=2, allow_nan=False) + "\n")


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
