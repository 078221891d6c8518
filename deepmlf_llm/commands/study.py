"""Runs a scale study: every cell of a grid through the training recipe, then one report.

  deepmlf study                                                        # the default grid, on the embedded set
  deepmlf study --grid scale/mosi --output runs/mosi-study --slots 2
  deepmlf study report runs/mosi-study                                 # its report again, from what is stored
  deepmlf study compare runs/mosi-study runs/another                   # --help says more

The same command again goes on: finished cells are skipped, cut ones resume, failed ones are tried again. Ctrl-C is
safe, and so is a kill.
"""

import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepmlf_llm import shipped
from deepmlf_llm.commands import train
from deepmlf_llm.commands.shell import RecipeParser, program, run_recipe
from deepmlf_llm.errors import ConfigError
from deepmlf_llm.paths import shown

DEFAULT = "scale/default"
TRAIN = Path(train.__file__)
FAILED_CELLS = 1


def build_parser() -> RecipeParser:
    parser = RecipeParser(prog=program("study"), description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--grid", type=Path, help=f"YAML of the study, or the name of a shipped one (default: {DEFAULT})")
    add("--output", type=Path, metavar="DIR", help="folder of the study (default: runs/scale-NAME)")
    add(
        "--slots",
        type=_positive,
        metavar="N",
        help="cells at a time (default: one a core, at most 4; GPUs / processes)",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--plan", action="store_true", help="list the cells with parameters and FLOPs of a step, and stop"
    )
    mode.add_argument("--dry-run", action="store_true", help="say what this start would run in --output, and stop")
    mode.add_argument("--report-only", action="store_true", help="write the report of --output again, and stop")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["compare"]:
        from deepmlf_llm.commands import study_compare

        study_compare.main(words[1:])
        return 0
    if words[:1] == ["report"]:
        words = ["--report-only", *(["--output"] if words[1:] and not words[1].startswith("-") else []), *words[1:]]
    args = build_parser().parse_args(words)
    from deepmlf_llm.study.directory import StudyDirectory

    if args.report_only:
        if args.output is None or args.grid is not None:
            raise ConfigError(
                "--report-only reads the grid stored in the study's folder: give --output DIR, and no --grid"
            )
        return _report(StudyDirectory(args.output))

    from deepmlf_llm.study.grid import Grid
    from deepmlf_llm.study.plan import make_plan

    grid = Grid.from_yaml(shipped.locate(shipped.CONFIGS, args.grid or DEFAULT))
    directory = StudyDirectory(args.output or Path("runs") / f"scale-{grid.name}")
    directory.check(grid.name)
    plan = make_plan(grid, TRAIN)
    if args.plan:
        _print_plan(plan)
        return 0
    if args.dry_run:
        _print_state(plan, directory)
        return 0
    return _run(plan, directory, args.slots)


def _run(plan: Any, directory: Any, slots: int | None) -> int:
    from deepmlf_llm.study.cell_process import default_slots, make_slots
    from deepmlf_llm.study.live import make_view
    from deepmlf_llm.study.runner import Runner, Stopped

    processes = plan.grid.processes
    chosen = make_slots(slots or default_slots(processes), processes)
    for note in plan.notes:
        print(f"note: {note}")
    print(f"{len(plan.cells)} cells in {shown(directory.path)}, {len(chosen)} at a time", flush=True)
    with directory.claimed():
        directory.check(plan.grid.name)
        directory.write(plan)
        try:
            Runner(plan, directory, chosen, TRAIN, make_view(plan.grid.metric)).run()
        except Stopped as stopped:
            print(f"{stopped}; what is finished is kept, and the same command goes on", file=sys.stderr)
            return 128 + stopped.number
        return _report(directory)


def _report(directory: Any) -> int:
    from deepmlf_llm.study.report import write_report
    from deepmlf_llm.study.results import read_all

    paths = write_report(directory)
    failed = [r["cell"] for r in read_all(directory, directory.planned()) if r["status"] == "failed"]
    print("report: " + ", ".join(shown(path) for path in paths))
    if failed:
        print(f"{len(failed)} cells failed, see the report: {', '.join(failed)}", file=sys.stderr)
    return FAILED_CELLS if failed else 0


def _print_plan(plan: Any) -> None:
    rows = [
        (
            cell.name,
            f"{cell.trainable:,}",
            f"{cell.total:,}",
            f"{cell.step_flops / 1e9:,.2f}",
            f"{cell.geometry['utterances']} x {cell.geometry['text_tokens']} tokens",
            cell.steps,
        )
        for cell in plan.cells
    ]
    columns = ("cell", "trained", "parameters", "GFLOPs a step", "step", "steps")
    _print_rows(f"Study {plan.grid.name}: {len(rows)} cells", rows, columns)
    for name, count in plan.excluded.items():
        print(f"left out: {count} cells, {name}")
    for note in plan.notes:
        print(f"note: {note}")


def _print_state(plan: Any, directory: Any) -> None:
    from deepmlf_llm.study.results import read_record

    rows = []
    for cell in plan.cells:
        folder = directory.cell(cell.name)
        record = read_record(folder, cell.fingerprint)
        state = "goes on" if folder.is_dir() else "starts"
        if record is not None:
            state = (
                "finished, skipped" if record["status"] == "finished" else f"failed ({record['run_info']['reason']})"
            )
        rows.append((cell.name, state))
    _print_rows(f"Study {plan.grid.name} in {shown(directory.path)}", rows, ("cell", "this start"))


def _print_rows(title: str, rows: list[tuple[Any, ...]], columns: tuple[str, ...]) -> None:
    """Plain columns, never folded: names of cells are folders, to be copied."""
    lines = [columns, *(tuple(map(str, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(title)
    for line in lines:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _positive(text: str) -> int:
    from argparse import ArgumentTypeError

    if not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r}: expected an integer >= 1")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
