"""Predicts the polarity (or classes) of utterances in a file with a trained adapter or a merged model.

Reads JSON Lines, {"id", "text", "audio": [[...]], "vision": [[...]]} with raw features (a modality may be absent or
null, one vector is one frame), or a Parquet file with those columns; also prepared data, and whatever prepare reads
(an MMSA pickle, a folder with label.csv), with labels or without; and one clip as MMSA-FET writes it.

Writes JSON Lines in the same order: {"id", "polarity", "label", "text_polarity", "av_polarity", "fusion_polarity"};
of an adapter with readout=both also "task_polarity" and "verbalised_polarity", of which the polarity is the mean; of
classes {"id", "label", "probabilities": {"joy": .., ..}, "text_probabilities", ..}. A bad row is reported by number and
becomes {"id", "error"}; --strict stops at it. A key that the model does not know and that holds a sequence makes a row
bad: --rename or --ignore it. A run that was cut off goes on where it stopped, with the same adapter, input and
settings.

Exit codes: 0 all rows are good, 3 some are bad, 2 none is good, or nothing could be predicted.

deepmlf predict --adapter runs/x/adapter --input clips.jsonl --output polarity.jsonl

With --video a clip is read by the recipe that the model carries, and its polarity told over time: one row a span of
speech, with what the text alone and sound and sight alone say. A model whose features came from elsewhere (COVAREP,
FACET) cannot take clips, and says so. With --text alone there is only the text.

deepmlf predict --adapter runs/x/adapter --video clip.mp4 --json clip.json --srt clip.srt --plot clip.svg
"""

import json
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from deepmlf_llm.commands.clip_prediction import add_clip_options, predict_clip, refuse_clip_options
from deepmlf_llm.commands.shell import RecipeParser, add_rename, one_of, program, run_recipe


def build_parser() -> RecipeParser:
    parser = RecipeParser(prog=program("predict"), description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--adapter", required=True, help="directory of an adapter, of a run or of a merged model, or a hub id")
    add("--input", type=Path, help="utterances: .jsonl, .parquet, or any data; see above")
    add("--output", type=Path, help="predictions: .jsonl; must not exist yet")
    add("--split", metavar="NAME", help="of an input that has splits (default: all, one after the other)")
    add_rename(parser, "read a key of the rows under another name, as visual=vision")
    add("--ignore", nargs="+", default=[], metavar="KEY", help="keys of the rows that are not read, whatever they hold")
    add("--text", help="transcript of a single clip or of --video; without those the one text to predict")
    add("--base_model", help="hub id or path of the base model (default: the one the adapter names)")
    add("--batch_size", type=int, default=32, metavar="N", help="utterances a batch (default: 32)")
    add(
        "--dtype",
        type=one_of("auto", "float32", "bfloat16"),
        default="auto",
        metavar="auto|float32|bfloat16",
        help="of the base model (default: auto: bf16 on CUDA; on a CPU fp32 for an adapter trained so, else bf16 where "
        "the CPU computes it natively)",
    )
    add(
        "--quantization",
        type=one_of("trained", "none", "nf4", "fp4", "int8"),
        default="trained",
        metavar="trained|none|nf4|fp4|int8",
        help="of the base model (default: what the adapter was trained on)",
    )
    add("--compile", action="store_true", help="run the language model through torch.compile; needs g++")
    add("--strict", action="store_true", help="stop at the first bad row, with exit code 2")
    add_clip_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(argv)
    refuse_clip_options(options, parser)
    if options.video is not None or (options.text is not None and options.input is None):
        return predict_clip(options)
    if options.input is None or options.output is None:
        parser.error("expected --input and --output, or --video, or --text")
    from deepmlf_llm.adapters.hub import local_directory
    from deepmlf_llm.backbones import cpu
    from deepmlf_llm.data.columns import Columns
    from deepmlf_llm.data.inputs import open_input
    from deepmlf_llm.inference.prediction_file import check_files, predict_file
    from deepmlf_llm.inference.predictor import SentimentPredictor
    from deepmlf_llm.model.merged import identity_of, read_settings

    check_files(options.input, options.output, options.batch_size)
    adapter = local_directory(options.adapter)
    settings = read_settings(adapter)
    columns = Columns(settings.modalities, dict(options.rename), options.ignore)
    source = open_input(options.input, columns, settings, options.split, options.text)
    threads = cpu.use_cores()
    predictor = SentimentPredictor.from_pretrained(
        adapter,
        base=options.base_model,
        dtype=options.dtype,
        quantization=options.quantization,
        device=options.device,
        batch_size=options.batch_size,
        compile=options.compile,
    )
    if predictor.device.type == "cpu":
        print(cpu.described(predictor.dtype, threads))
    made_by = {"adapter": identity_of(adapter), "dtype": options.dtype, "quantization": options.quantization}
    chosen = {
        "split": options.split,
        "text": options.text,
        "rename": dict(options.rename),
        "ignore": sorted(options.ignore),
    }
    chosen["base_model"] = options.base_model
    made_by |= {name: json.dumps(value, sort_keys=True) for name, value in chosen.items() if value}
    done = predict_file(predictor, source, options.output, options.strict, None, made_by, columns)
    for note in done.notes:
        print(f"note: {note}")
    print(f"{done.rows} rows, {done.bad} of them bad, {done.found} found from an earlier run: {options.output}")
    return done.exit_code


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
