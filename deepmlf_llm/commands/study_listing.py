"""What `deepmlf study` shows of a plan before anything runs: --plan and --dry-run."""

from collections.abc import Mapping
from typing import Any

from deepmlf_llm.paths import shown
from deepmlf_llm.study.cells import Plan
from deepmlf_llm.study.directory import StudyDirectory
from deepmlf_llm.study.results import is_finished, read_record


def print_plan(plan: Plan) -> None:
    """Each cell with what it trains and what a step of it takes."""
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


def print_state(plan: Plan, directory: StudyDirectory, found: Mapping[str, Any]) -> None:
    """What a start would do with each cell.

    Args:
        plan: its cells.
        directory: of the study.
        found: by their fingerprints, those that are finished elsewhere.
    """
    rows = []
    for cell in plan.cells:
        folder = directory.cell(cell.name)
        record = read_record(folder, cell.fingerprint)
        state = "goes on" if folder.is_dir() else "starts"
        if is_finished(record):
            state = "finished, skipped"
        elif cell.fingerprint in found:
            state = "finished elsewhere, skipped"
        elif record is not None:
            state = f"failed ({record['run_info']['reason']})"
        rows.append((cell.name, state))
    _print_rows(f"Study {plan.grid.name} in {shown(directory.path)}", rows, ("cell", "this start"))


def _print_rows(title: str, rows: list[tuple[Any, ...]], columns: tuple[str, ...]) -> None:
    """Plain columns, never folded: names of cells are folders, to be copied."""
    lines = [columns, *(tuple(map(str, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(title)
    for line in lines:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
