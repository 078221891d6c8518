"""Fits a baseline in the harness of a run: the same splits, metrics and files, so that compare takes it.

  constant   the median of the training labels
  ridge      ridge regression on the frozen LM's states; layer and pooling chosen on validation
  lora_text  LoRA on the LM and a head on its last token: the text alone
  bam        an MLP on pooled audio and vision, added to the frozen LM's text state

The test split is looked at once, at the end.

deepmlf baseline --kind ridge --data data/mosi --output_dir runs/ridge
"""

import dataclasses
import typing
from argparse import SUPPRESS, RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import Any

from deepmlf_llm.commands.shell import RecipeParser, one_of, print_metrics, program, run_recipe


def build_parser() -> RecipeParser:
    from deepmlf_llm.baselines.settings import KINDS, BaselineSettings

    parser = RecipeParser(prog=program("baseline"), description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    hints = typing.get_type_hints(BaselineSettings)
    for field in dataclasses.fields(BaselineSettings):
        given: dict[str, Any] = {"help": field.metadata["help"], "default": SUPPRESS}
        if field.name == "kind":
            given |= {"type": one_of(*KINDS), "required": True, "metavar": "|".join(KINDS)}
        elif field.name == "modalities":
            given |= {"nargs": "+", "metavar": "NAME"}
        else:
            members = [m for m in typing.get_args(hints[field.name]) or (hints[field.name],) if m is not type(None)]
            given |= {"type": members[0], "metavar": "N" if members[0] in (int, float) else "NAME"}
            given["help"] += "" if field.default is None else f" (default: {field.default})".replace("%", "%%")
        parser.add_argument(f"--{field.name}", **given)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    options = vars(build_parser().parse_args(argv))
    options.pop("verbose", None)
    if "template" in options:
        options["template"] = options["template"].replace("\\n", "\n")
    from deepmlf_llm.baselines.run import run_baseline
    from deepmlf_llm.baselines.settings import BaselineSettings

    result = run_baseline(BaselineSettings(**options))
    metrics = result["metrics"]
    print_metrics(f"Baseline {options['kind']}", {"valid": metrics["validation"], "test": metrics["test"]})


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
