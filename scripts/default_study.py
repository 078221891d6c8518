"""Writes docs/scale-study/default.md: the rows of several whole runs of the default study, each with seeds of its own.

python recipes/scale_study.py --output runs/scale-default
python recipes/scale_study.py --output runs/scale-default-again --seeds 4-6
python scripts/default_study.py runs/scale-default runs/scale-default-again
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from deepmlf_llm.errors import RunError  # noqa: E402
from deepmlf_llm.files import write_aside  # noqa: E402
from deepmlf_llm.statistics.seeds import Interval, t_interval  # noqa: E402
from deepmlf_llm.study.blocks import Block, Heading, Paragraph, Table, to_markdown  # noqa: E402
from deepmlf_llm.study.configurations import axis_name, gather, varied  # noqa: E402
from deepmlf_llm.study.directory import StudyDirectory  # noqa: E402
from deepmlf_llm.study.results import read_all  # noqa: E402
from deepmlf_llm.study.statistics import effects, reading, signed  # noqa: E402
from deepmlf_llm.study.text_alone import text_pairs  # noqa: E402

TARGET = REPOSITORY / "docs" / "scale-study" / "default.md"
_ABOUT = (
    "Each column is a whole run with seeds of its own. A row is no accident where its interval excludes zero in all of "
    "them, on the same side. MAE on the embedded set's test split (real sentences, synthetic audio and vision); "
    "intervals are 95 % t-intervals over seeds."
)


@dataclass(frozen=True)
class Run:
    """A whole run of the study: what its rows and its configurations say.

    Args:
        title: of the study.
        facts: cells, seeds, hours, code version.
        rows: what changed -> the change.
        means: configuration -> the metric.
    """

    title: str
    facts: str
    rows: dict[str, Interval]
    means: dict[str, str]


def read_run(path: Path) -> Run:
    """What is stored in a study's folder.

    Raises:
        RunError: no study there, or one of which cells are missing or have failed.
    """
    directory = StudyDirectory(path)
    study, planned = directory.read(), directory.planned()
    records = [record for record in read_all(directory, planned) if record["status"] == "finished"]
    if len(records) < len(planned):
        raise RunError(f"{path}: {len(records)} of {len(planned)} cells have finished; give a whole run")
    metric, found = study["metric"], gather(records)
    axes = varied(found)
    rows = {f"{axis_name(e.axis)}: {e.before} to {e.after}": e.change for e in effects(found, axes, metric)}
    for effect, backbone, _, _ in text_pairs(found, axes, metric):
        rows[f"{backbone[0]}, {backbone[1]} layers: {effect.before} to {effect.after}"] = effect.change
    means = {
        ", ".join(f"{axis_name(axis)}: {c.values.get(axis)}" for axis in axes): t_interval([*values.values()]).text()
        for c in found
        if (values := c.by_seed(metric))
    }
    seconds = sum(record["train_info"].get("total_seconds") or 0 for record in records)
    seeds = ", ".join(map(str, sorted({seed for c in found for seed in c.records})))
    facts = f"Seeds {seeds}: {len(records)} cells, {seconds / 60:.0f} minutes of cells, code version {study['code']}."
    return Run(study["title"], facts, rows, means)


def blocks(runs: Sequence[Run]) -> list[Block]:
    """The page's content; a row that a run lacks is empty there."""
    names = [f"run {number}" for number in range(1, len(runs) + 1)]
    told = []
    for name in dict.fromkeys(name for run in runs for name in run.rows):
        changes = [run.rows.get(name) for run in runs]
        told.append((name, *("" if c is None else signed(c) for c in changes), _verdict(changes)))
    shown = sum(row[-1] == _SHOWN for row in told)
    means = [
        (name, *(run.means.get(name, "") for run in runs))
        for name in dict.fromkeys(name for run in runs for name in run.means)
    ]
    columns = range(1, len(runs) + 1)
    return [
        Heading(runs[0].title, 1),
        Paragraph(_ABOUT),
        *(Paragraph(run.facts) for run in runs),
        Heading("What changed, all else equal"),
        Table(("change of MAE", *names, "reading"), told, columns),
        Paragraph(f"{shown} of {len(told)} rows exclude zero in every run."),
        Heading("Each configuration"),
        Table(("configuration", *names), means, columns),
    ]


_SHOWN = "shown by every run"


def _verdict(changes: Sequence[Any]) -> str:
    if any(change is None for change in changes):
        return "not in every run"
    if all(change.excludes_zero for change in changes) and len({change.mean > 0 for change in changes}) == 1:
        return _SHOWN
    told = "; ".join(dict.fromkeys(reading(change) for change in changes))
    return f"{told} (not by every run)" if any(change.excludes_zero for change in changes) else told


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="folders of whole runs")
    parser.add_argument("--page", type=Path, default=TARGET, metavar="FILE.md")
    options = parser.parse_args(argv)
    write_aside(options.page, to_markdown(blocks([read_run(path) for path in options.runs])))


if __name__ == "__main__":
    main()
