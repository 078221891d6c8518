"""Merges an adapter and its base model into one directory that needs neither PEFT nor the adapter.

python recipes/merge_adapter.py --adapter runs/x/adapter --output merged
"""

from argparse import RawDescriptionHelpFormatter
from pathlib import Path

from deepmlf_llm.cli import RecipeParser, one_of, run_recipe
from deepmlf_llm.errors import ConfigError
from deepmlf_llm.training.launch import quiet_libraries


def build_parser() -> RecipeParser:
    parser = RecipeParser(prog="merge_adapter.py", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--adapter", type=Path, required=True, help="directory of a trained adapter")
    add("--output", type=Path, required=True, help="directory to write; must not exist yet")
    add("--dtype", type=one_of("auto", "float32", "bfloat16"), default="auto", help="of the merged LM (default: auto)")
    add(
        "--base",
        type=one_of("16bit", "dequantized"),
        default="16bit",
        metavar="16bit|dequantized",
        help="merge into the original weights, or into what --quantization makes of them, dequantised: the outputs the "
        "adapter was trained with (default: 16bit)",
    )
    add(
        "--quantization",
        type=one_of("nf4", "fp4", "int8"),
        default="nf4",
        metavar="nf4|fp4|int8",
        help="with --base dequantized: what the adapter was trained on (default: nf4)",
    )
    add(
        "--requantize",
        type=one_of("nf4", "fp4", "int8"),
        metavar="nf4|fp4|int8",
        help="report what quantising the merged LM again would change; it is loaded so with quantization=...",
    )
    return parser


def main() -> None:
    quiet_libraries()
    options = build_parser().parse_args()
    if options.output.exists():
        raise ConfigError(f"--output {options.output}: exists; move it away or name another directory")
    from deepmlf_llm.merging import merge_adapter

    report = merge_adapter(
        options.adapter,
        options.output,
        dtype=options.dtype,
        quantization=options.quantization if options.base == "dequantized" else "none",
        requantize=options.requantize,
    )
    for what, difference in report.items():
        print(
            f"{what}: predictions differ by {difference['largest']:.2e} at most, {difference['mean']:.2e} in the mean"
        )
    print(f"merged model: {options.output}")


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
