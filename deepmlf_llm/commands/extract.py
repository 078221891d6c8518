"""The adapter of a checkpoint, without starting the run: for a run that was cut, or to look at one that is under way.

    deepmlf extract runs/NAME/checkpoint-120 --output adapter
    deepmlf extract runs/NAME --which best --output adapter

It works on checkpoints of every engine, ZeRO-3 included, and loads no base model.
"""

from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from deepmlf_llm.commands.shell import RecipeParser, one_of, program, run_recipe


def build_parser() -> RecipeParser:
    parser = RecipeParser(prog=program("extract"), description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="directory of a checkpoint, or of a run")
    parser.add_argument("--output", type=Path, required=True, help="directory to write; must not exist yet")
    parser.add_argument(
        "--which",
        type=one_of("newest", "best"),
        default="newest",
        metavar="newest|best",
        help="of a run's checkpoints the newest whole one (default), or the best until then by validation",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(argv)
    from deepmlf_llm.training.extract import extract_adapter

    found = extract_adapter(options.checkpoint, options.output, options.which)
    told = [
        f"{name} {found['metrics'][name]:.4f}" for name in ("mae", "f1_weighted", "corr") if name in found["metrics"]
    ]
    print(f"{found['checkpoint'].name}: {found['tensors']} tensors, {found['values']:,} values{_behind(told)}")
    print(f"adapter: {options.output}")


def _behind(told: list[str]) -> str:
    return f"; validation {', '.join(told)}" if told else "; not evaluated at this step"


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
