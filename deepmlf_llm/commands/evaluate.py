"""Evaluates a trained adapter on one split of labelled data and writes its metrics as JSON.

Reads prepared data, or any source that prepare reads: an MMSA pickle, a folder with label.csv, JSON Lines with labels;
a file or folder with the test split alone. Features are standardised as those of the adapter's training were.
Beside NAME.json go the predictions (NAME.parquet) and plots (NAME.confusion.svg, NAME.calibration.svg). --missing and
--noise measure every combination of their levels too, from the same loaded model (NAME.robustness.md and .svg).

deepmlf evaluate --adapter runs/x/adapter --data data/mosi --split test --output test.json
"""

import json
from argparse import RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepmlf_llm.commands.shell import (
    RecipeParser,
    add_rename,
    one_of,
    print_columns,
    print_metrics,
    program,
    run_recipe,
)
from deepmlf_llm.errors import ConfigError

PREDICTIONS = ".parquet"
ROBUSTNESS = (".robustness.md", ".robustness.svg")


def build_parser() -> RecipeParser:
    parser = RecipeParser(prog=program("evaluate"), description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--adapter", required=True, help="directory of a trained adapter or of its run, or a hub id")
    add("--data", default="embedded", help="data directory, labelled file or folder, or embedded (default)")
    add("--split", help="split of the data (default: test, or the only one there is)")
    add_rename(parser, "name of a modality in a file -> name in the adapter, as visual=vision")
    add("--output", type=Path, help="JSON file to write, must not exist yet (default: none, only printed)")
    add("--base_model", help="base model (default: the one the adapter names)")
    add(
        "--quantization",
        type=one_of("trained", "none", "nf4", "fp4", "int8"),
        default="trained",
        metavar="trained|none|nf4|fp4|int8",
        help="of the base model (default: what the adapter was trained on)",
    )
    add("--num_layers", type=int, metavar="N", help="layers of a cut base model, with --base_model (default: all)")
    add(
        "--missing",
        metavar="M=S,..",
        help="share of utterances that lack a modality: audio=0.5,vision=0:0.5:1 (a grid)",
    )
    add("--noise", metavar="M=S,..", help="Gaussian noise on a modality, in standard deviations: audio=0.3,vision=0:1")
    add("--mask_seed", type=int, default=0, metavar="N", help="of what is missing and of the noise (default: 0)")
    add("--batch_size", type=int, default=64, metavar="N", help="utterances a batch (default: 64)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(argv)
    if options.batch_size < 1:
        raise ConfigError(f"--batch_size={options.batch_size}: expected an integer >= 1")
    cells = _conditions(options)
    if options.num_layers is not None and options.base_model is None:
        raise ConfigError("--num_layers needs --base_model")
    if options.output is not None:
        _check_places(options.output, ROBUSTNESS if cells else ())
    from deepmlf_llm.adapters.hub import local_directory
    from deepmlf_llm.training.evaluation import Evaluator

    adapter = local_directory(options.adapter)
    evaluator = Evaluator(
        adapter,
        _data(options.data),
        options.split,
        _base(options, adapter),
        options.quantization,
        options.batch_size,
        dict(options.rename),
    )
    score = evaluator.score()
    result = evaluator.result(score)
    for note in result["notes"]:
        print(f"note: {note}")
    rows = {result["split"]: result["metrics"], **_bounds(score)}
    print_metrics("", rows, f"{result['utterances']} utterances")
    if score.classes is not None:
        _print_classes(score.classes)
    if cells:
        result["robustness"] = _robustness(evaluator, cells, options.output)
    if options.output is not None:
        _write(options.output, score, result)


def _check_places(output: Path, more: Sequence[str]) -> None:
    """Whether all files can be written, before minutes of work: ``output``, and beside it predictions, plots and
    ``more``.

    Raises:
        ConfigError: one is there already, or its directory is not.
        FileError: something else stands in its place.
    """
    if not output.parent.is_dir():
        raise ConfigError(f"--output {output}: its directory is not there")
    from deepmlf_llm.files import check_place
    from deepmlf_llm.statistics.plots import PLOTS

    if output.suffix == PREDICTIONS:
        raise ConfigError(f"--output {output}: the metrics are JSON; {PREDICTIONS} goes beside them by itself")
    beside = [output.with_suffix(ending) for ending in (PREDICTIONS, *(f".{name}" for name in PLOTS), *more)]
    for path in (output, *beside):
        check_place(path)
        if path.exists():
            raise ConfigError(f"--output {path}: exists; move it away or name another file")


def _base(options: Any, adapter: Path) -> Any:
    """Name of the base model, None for the adapter's own; with ``--num_layers`` the cut model itself."""
    if options.num_layers is None:
        return options.base_model
    from deepmlf_llm.adapters.compatibility import trained_dtype, trained_kind
    from deepmlf_llm.adapters.files import read_config
    from deepmlf_llm.backbones import load_base_model

    config = read_config(adapter)
    kind, seed = trained_kind(config, options.quantization), config.base_init_seed
    dtype = trained_dtype(config, "auto")
    return load_base_model(options.base_model, kind, dtype, num_layers=options.num_layers, init_seed=seed)


def _write(output: Path, score: Any, result: Mapping[str, Any]) -> None:
    """The metrics, and beside them predictions and plots."""
    from deepmlf_llm.files import write_aside
    from deepmlf_llm.training.metrics_log import finite
    from deepmlf_llm.training.scores import write_beside

    for note in write_beside(output.parent, [score], score, output.with_suffix(PREDICTIONS).name, f"{output.stem}."):
        print(f"note: {note}")
    write_aside(output, json.dumps(finite(result), indent=2, allow_nan=False) + "\n")


def _conditions(options: Any) -> list[Any]:
    """The conditions that --missing and --noise ask for; none without them."""
    if options.missing is None and options.noise is None:
        return []
    from deepmlf_llm.data.corruption import LARGEST_NOISE, read_levels
    from deepmlf_llm.training.robustness import grid

    for name, given in (("--missing", options.missing), ("--noise", options.noise)):
        if given is not None and not given.strip():
            raise ConfigError(f"{name}: nothing given; expected modalities with their levels, e.g. audio=0.5")
    missing = read_levels(options.missing.split(",") if options.missing else (), "--missing")
    noise = read_levels(options.noise.split(",") if options.noise else (), "--noise", LARGEST_NOISE)
    return grid(missing, noise, options.mask_seed)


def _robustness(evaluator: Any, cells: list[Any], output: Path | None) -> dict[str, Any]:
    """Measures and prints the conditions; their page and plot are written beside ``output``."""
    from deepmlf_llm.extras import installed, missing
    from deepmlf_llm.files import write_aside
    from deepmlf_llm.training import robustness

    conditions = robustness.measure(evaluator, cells)
    metric = next(iter(conditions[0].score.metrics))
    columns, rows = robustness.table(conditions, metric)
    print_columns("Missing and noisy modalities", [columns, *rows])
    if output is not None:
        page, picture = (output.with_suffix(ending) for ending in ROBUSTNESS)
        write_aside(page, robustness.markdown(conditions, metric))
        if installed("matplotlib"):
            write_aside(picture, robustness.plot(conditions, metric))
        else:
            print(f"note: {missing('matplotlib', 'no plot: drawing it')}")
    return robustness.to_dict(conditions)


def _print_classes(classes: Mapping[str, Any]) -> None:
    """The table of classes, and which is taken for which."""
    print_metrics("by class", classes["table"], "class")
    if isinstance(found := classes["confusion"], list):
        names = list(classes["table"])
        counts = [[name, *row] for name, row in zip(names, found, strict=True)]
        print_columns("true class, taken for", [["class", *names], *counts])


def _bounds(score: Any) -> dict[str, dict[str, float | None]]:
    """The ends of the intervals, as rows of their own."""
    known = {name: bounds or (None, None) for name, bounds in score.intervals.items()}
    return {
        "95 % from": {name: bounds[0] for name, bounds in known.items()},
        "95 % to": {name: bounds[1] for name, bounds in known.items()},
    }


def _data(name: str) -> Path:
    if name != "embedded":
        return Path(name)
    from deepmlf_llm.data.demo import embedded_dataset

    return embedded_dataset()


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
