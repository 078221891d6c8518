"""Runs named variants of one recipe with the same seeds, and says what each change does, with intervals.

The file names a recipe, seeds, data and variants; see recipes/configs/ablations. What is stored is not run again, so
the same command goes on after a cut. With --report nothing is run: the table and the figure are made from the stored
results alone.

deepmlf ablate ablations/mosi --output runs/ablation-mosi
deepmlf ablate ablations/mosi --output docs/ablations/mosi --report
"""

from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from deepmlf_llm.commands.shell import RecipeParser, program, run_recipe
from deepmlf_llm.errors import ConfigError


def build_parser() -> RecipeParser:
    parser = RecipeParser(prog=program("ablate"), description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("file", metavar="FILE", help="the ablation: a YAML file, or the name of a shipped one")
    add("--output", type=Path, required=True, help="directory of results, runs, table and figure")
    add("--only", nargs="+", default=[], metavar="NAME", help="variants or groups to run (default: all)")
    add("--report", action="store_true", help="run nothing; make table and figure from what is stored")
    add(
        "--resamples",
        type=int,
        metavar="N",
        help="of the bootstrap (default: 10000, or as many as a large number of p-values asks for)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(argv)
    if options.resamples is not None and not 100 <= options.resamples <= 1_000_000:
        raise ConfigError(f"--resamples={options.resamples}: expected an integer from 100 to 1000000")
    from deepmlf_llm.ablation import AblationPlan, run_ablation, write_report
    from deepmlf_llm.files import make_directory
    from deepmlf_llm.paths import shown

    plan = AblationPlan.from_yaml(options.file)
    if options.only and options.report:
        raise ConfigError("--only with --report: nothing is run; leave --only out")
    if not options.report:
        plan.named(options.only)
        make_directory(options.output)
        run_ablation(plan, options.output, options.only)
    print(f"table: {shown(write_report(plan, options.output, options.resamples))}")


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
