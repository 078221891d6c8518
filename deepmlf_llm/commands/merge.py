"""Merges an adapter and its base model into one directory that needs neither PEFT nor the adapter.

deepmlf merge --adapter runs/x/adapter --output merged
"""

from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from deepmlf_llm.commands.shell import RecipeParser, one_of, print_table, program, run_recipe
from deepmlf_llm.errors import ConfigError


def build_parser() -> RecipeParser:
    parser = RecipeParser(prog=program("merge"), description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--adapter", required=True, help="directory of a trained adapter or of its run, or a hub id")
    add("--base_model", help="hub id or path of the base model (default: the one the adapter names)")
    add("--output", type=Path, required=True, help="directory to write; must not exist yet")
    add("--dtype", type=one_of("auto", "float32", "bfloat16"), default="auto", help="of the merged LM (default: auto)")
    add(
        "--base",
        type=one_of("dequantized", "16bit"),
        metavar="dequantized|16bit",
        help="for an adapter that was trained on a quantized base: merge into what quantization made of the weights, "
        "which keeps the predictions (default), or into the original ones",
    )
    add(
        "--requantize",
        type=one_of("nf4", "fp4", "int8"),
        metavar="nf4|fp4|int8",
        help="quantize the merged LM again; predictions change, and the report says by how much",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(argv)
    if options.output.exists():
        raise ConfigError(f"--output {options.output}: exists; move it away or name another directory")
    from deepmlf_llm.model.merging import merge_adapter

    report = merge_adapter(
        options.adapter, options.output, options.dtype, options.base, options.requantize, options.base_model
    )
    rows = [(what, f"{d['largest']:.2e}", f"{d['mean']:.2e}") for what, d in report.items()]
    print_table(
        "What merging changed: polarities on a probe batch", rows, ["compared", "largest difference", "mean difference"]
    )
    print(f"merged model: {options.output}")


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
