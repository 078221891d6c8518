"""Compares runs on the same utterances: metrics with intervals, differences from the first run, p-values.

Each argument is the directory of a run, a directory of several runs (seed-*), a file of predictions (*.parquet), or
several of these with commas between them, which then count as seeds of one thing. docs/statistics.md says what the
intervals and p-values mean.

deepmlf compare runs/text_only runs/deepmlf --output comparison.json
"""

import json
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from deepmlf_llm.commands.shell import RecipeParser, print_columns, program, run_recipe
from deepmlf_llm.errors import ConfigError


def build_parser() -> RecipeParser:
    parser = RecipeParser(prog=program("compare"), description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="the first one is what the others are compared with")
    add("--split", help="split of the predictions (default: test, or the only one there is)")
    add(
        "--head",
        default="polarity",
        help="polarity (the prediction), or one head: text_polarity, .. (default: polarity)",
    )
    add("--resamples", type=int, default=10_000, metavar="N", help="of the bootstrap (default: 10000)")
    add("--seed", type=int, default=0, metavar="N", help="of the bootstrap (default: 0)")
    add("--output", type=Path, help="JSON file to write, with a page of Markdown beside it; must not exist yet")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(argv)
    if not 100 <= options.resamples <= 1_000_000:
        raise ConfigError(f"--resamples={options.resamples}: expected an integer from 100 to 1000000")
    if options.seed < 0:
        raise ConfigError(f"--seed={options.seed}: expected an integer >= 0")
    from deepmlf_llm.files import check_place, write_aside
    from deepmlf_llm.statistics import comparison_report as report
    from deepmlf_llm.statistics.comparing import compare, open_entry

    page = None if options.output is None else options.output.with_suffix(".md")
    for path in (options.output, page):
        if path is not None:
            check_place(path)
            if path.exists() or path == options.output == page:
                raise ConfigError(
                    f"--output {options.output}: {path.name} exists or is not a name for JSON; name another"
                )
    comparison = compare(
        [open_entry(name, options.split) for name in options.runs], options.head, options.resamples, options.seed
    )
    print(report.summary(comparison))
    columns, rows = report.metric_rows(comparison)
    print_columns("Metrics (mean ± deviation over seeds, interval)", [columns, *rows])
    if comparison.differences:
        columns, rows = report.difference_rows(comparison.differences)
        print_columns(f"Differences from {comparison.differences[0].reference}", [columns, *rows])
    if options.output is not None and page is not None:
        from deepmlf_llm.training.metrics_log import finite

        content = finite(report.to_dict(comparison))
        write_aside(page, report.to_markdown(comparison))
        write_aside(options.output, json.dumps(content, indent=2, allow_nan=False) + "\n")


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
