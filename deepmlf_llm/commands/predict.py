"""Predicts the polarity of utterances in a file with a trained adapter or a merged model.

Reads JSON Lines, {"id", "text", "audio": [[...]], "vision": [[...]]} with raw features (a modality may be absent or
null), or a Parquet file with those columns. Writes JSON Lines in the same order: {"id", "polarity", "label",
"text_polarity", "av_polarity", "fusion_polarity"}. A bad row is reported by number and becomes {"id", "error"};
--strict stops at it. A run that was cut off goes on where it stopped, with the same adapter, input and settings.

python recipes/predict.py --adapter runs/x/adapter --input clips.jsonl --output polarity.jsonl
"""

from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from deepmlf_llm.commands.shell import RecipeParser, one_of, run_recipe


def build_parser() -> RecipeParser:
    parser = RecipeParser(prog="predict.py", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--adapter", required=True, help="directory of an adapter or a merged model, or its hub id")
    add("--input", type=Path, required=True, help="utterances: .jsonl or .parquet")
    add("--output", type=Path, required=True, help="predictions: .jsonl; must not exist yet")
    add("--batch_size", type=int, default=32, metavar="N", help="utterances a batch (default: 32)")
    add("--dtype", type=one_of("auto", "float32", "bfloat16"), default="auto", help="of the base model (default: auto)")
    add(
        "--quantization",
        type=one_of("trained", "none", "nf4", "fp4", "int8"),
        default="trained",
        metavar="trained|none|nf4|fp4|int8",
        help="of the base model (default: what the adapter was trained on)",
    )
    add("--compile", action="store_true", help="run the language model through torch.compile; needs g++")
    add("--strict", action="store_true", help="stop at the first bad row, with exit code 2")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(argv)
    from deepmlf_llm.adapters.hub import local_directory
    from deepmlf_llm.inference.prediction_file import check_files, predict_file
    from deepmlf_llm.inference.predictor import SentimentPredictor
    from deepmlf_llm.model.merged import identity_of

    check_files(options.input, options.output, options.batch_size)
    adapter = local_directory(options.adapter)
    made_by = {"adapter": identity_of(adapter), "dtype": options.dtype, "quantization": options.quantization}
    predictor = SentimentPredictor.from_pretrained(
        adapter,
        dtype=options.dtype,
        quantization=options.quantization,
        batch_size=options.batch_size,
        compile=options.compile,
    )
    done = predict_file(predictor, options.input, options.output, options.strict, made_by=made_by)
    print(f"{done.rows} rows, {done.bad} of them bad, {done.found} found from an earlier run: {options.output}")


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
