"""Prepares a data set once: reads, checks, cleans, standardises, and writes Arrow with a manifest.

deepmlf prepare --source mosi.pkl --dataset mosi --out data/mosi

deepmlf prepare --source moods.jsonl --dataset my_task.yaml --out data/moods

A source is an MMSA pickle, a pickle of word tuples, a folder with one pickle or JSON Lines file a split, JSON Lines, a
folder with label.csv and <modality>/*.npy, or a folder of CMU-MultimodalSDK's .csd files.
"""

import json
from argparse import ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from deepmlf_llm.commands.shell import RecipeParser, add_rename, key_value, one_of, print_table, program, run_recipe
from deepmlf_llm.data.clean import DEFAULT_CLIP
from deepmlf_llm.data.facts import STANDARDISATIONS
from deepmlf_llm.data.folds import Fold
from deepmlf_llm.data.storage import STORAGES
from deepmlf_llm.data.text import CASES
from deepmlf_llm.errors import ConfigError
from deepmlf_llm.tasks.registry import FILES, TASKS, Task, described_ranges, read_task


def build_parser() -> RecipeParser:
    parser = RecipeParser(prog=program("prepare"), description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--source", type=Path, required=True, help="file or folder to read, see above")
    add(
        "--dataset",
        type=_dataset,
        required=True,
        metavar="NAME|FILE.yaml",
        help=f"whose label range and metrics: {described_ranges()}; or a task of your own: a YAML file with range (and "
        "bins, names), or classes",
    )
    add("--out", type=Path, required=True, help="data directory to make (must be new or empty)")
    add(
        "--modalities",
        nargs="+",
        metavar="NAME",
        help="which modalities to read, in this order (default: all there are)",
    )
    add_rename(
        parser, "read what the source calls KEY as modality NAME, as facet=vision (visual and acoustic need no word)"
    )
    add(
        "--like",
        type=Path,
        metavar="DATA",
        help="prepare as the data directory DATA was: its modalities, case and standardisation; for evaluation only, "
        "so that the source may have one split (default: statistics of the source's own training split)",
    )
    add(
        "--fold",
        type=_fold,
        metavar="K/N",
        help="split anew for cross-validation over videos, whatever splits the source has: fold K (from 0) of N is the "
        "test split, the next one validates (default: the source's splits)",
    )
    _add_form(parser)
    add("--json", action="store_true", help="print the manifest as JSON instead of a table")
    return parser


def _add_form(parser: RecipeParser) -> None:
    """Options of what becomes of the source."""
    add = parser.add_argument
    add(
        "--case",
        type=one_of(*CASES),
        metavar="|".join(CASES),
        help="case of transcripts (default: lower for mosi, whose transcripts are upper case; keep for the others)",
    )
    add(
        "--clip",
        type=float,
        default=DEFAULT_CLIP,
        metavar="SD",
        help=f"cut standardised features at +- this many standard deviations, 0 = never (default: {DEFAULT_CLIP:g})",
    )
    add(
        "--standardise",
        type=one_of(*STANDARDISATIONS),
        metavar="|".join(STANDARDISATIONS),
        help="mean 0 and deviation 1 over the training split; or within each video first, by its own frames in its "
        "split, which leaves of a speaker what changes (ids VIDEO$_$CLIP; default: corpus)",
    )
    add(
        "--frame-rate",
        type=key_value,
        nargs="+",
        default=[],
        metavar="NAME=HZ",
        help="frames a second of a modality, recorded for predictions, as audio=5 (default: unknown)",
    )
    add(
        "--storage",
        type=one_of(*STORAGES),
        default="arrow",
        metavar="|".join(STORAGES),
        help="arrow, or numpy for machines without the package datasets (default: arrow)",
    )


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    from deepmlf_llm.data.prepare import prepare  # loads torch: not for --help
    from deepmlf_llm.data.report import report_rows

    manifest = prepare(
        args.source,
        args.dataset,
        args.out,
        modalities=args.modalities,
        rename=dict(args.rename),
        like=args.like,
        case=args.case,
        clip=args.clip or None,
        frame_rates={name: _hertz(name, value) for name, value in args.frame_rate},
        storage=args.storage,
        fold=args.fold,
        standardised_by=args.standardise,
    )
    if args.json:
        print(json.dumps(manifest.to_dict(), indent=1, ensure_ascii=False))
    else:
        print_table(f"Prepared {args.out}", report_rows(manifest))


def _fold(text: str) -> Fold:
    try:
        return Fold.parse(text)
    except ConfigError as error:
        raise ArgumentTypeError(str(error)) from None


def _dataset(text: str) -> str | Task:
    """A shipped data set, or a task of one's own by its file."""
    if text.endswith(FILES):
        try:
            return read_task(text)
        except ConfigError as error:
            raise ArgumentTypeError(str(error)) from None
    return one_of(*TASKS)(text)


def _hertz(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ConfigError(f"--frame-rate {name}={value}: expected a number of Hz") from None


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
