"""The parts of a report that say what was run: every cell, its cost, what failed, settings and environments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from deepmlf_llm.study.blocks import Block, Code, Paragraph, Table
from deepmlf_llm.study.configurations import axis_name, kinds_of_machine, plain

_FLOPS_METHOD = (
    "FLOPs are counted on paper for a step on the batch described: matrix products at two FLOPs for each multiply-add "
    "(projections, and both products of attention), forward, backward for inputs that need a gradient, and backward "
    "for trained weights; text read from the cache costs nothing. Norms, activations and the optimizer are left out. "
    "Parameters are counted unquantized."
)


def cell_table(records: Sequence[dict[str, Any]], axes: Sequence[str]) -> list[Block]:
    """The table that an interrupted study must end with as an uninterrupted one does: nothing in it depends on time."""
    done = [record for record in records if record["status"] == "finished"]
    names = list(dict.fromkeys(name for record in done for name in record["metrics"]["test"]))
    judged = next((name for record in done for name in record["metrics"]["validation"]), "mae")  # the task's first
    rows = []
    for record in records:
        run, metrics = record["run_info"], record["metrics"] or {}
        validation = (metrics.get("validation") or {}).get(judged)
        rows.append(
            [
                record["cell"],
                *(str(plain(run["values"].get(axis, ""))) for axis in axes),
                run["seed"],
                record["status"],
                "" if (best := record["train_info"].get("best_step")) is None else best,
                _number(validation),
                *(_number((metrics.get("test") or {}).get(name)) for name in names),
            ]
        )
    columns = ["cell", *(axis_name(a) for a in axes), "seed", "status", "best step", f"validation {judged}"]
    columns += [f"test {name}" for name in names]
    return [Table(columns, rows, [i for i in range(len(axes) + 1, len(columns)) if columns[i] != "status"])]


def _number(value: Any, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def cost_table(records: Sequence[dict[str, Any]]) -> list[Block]:
    """What each cell took, and how its FLOPs are counted."""
    rows = []
    for record in records:
        train = record["train_info"]
        geometry = train["geometry"]
        frames = " + ".join(f"{count} {name}" for name, count in geometry["frames"].items())
        frames = f", {frames} frames" if frames else ""
        cut = record["run_info"]["attempts"] > 1
        seconds = "was cut" if cut else _number(train.get("seconds"), 1)
        rows.append(
            [
                record["cell"],
                f"{train['parameters']['trainable']:,}",
                f"{train['parameters']['total']:,}",
                f"{train['step_flops'] / 1e9:,.2f}",
                f"{geometry['utterances']} x ({geometry['text_tokens']} tokens{frames})",
                seconds,
                _number((train.get("peak_memory_mb") or {}).get("resident"), 0),
            ]
        )
    columns = (
        "cell",
        "trained parameters",
        "all parameters",
        "GFLOPs a step",
        "step",
        "seconds of training",
        "peak MB",
    )
    said = _FLOPS_METHOD
    if (kinds := kinds_of_machine(records)) > 1:
        said += f" The cells ran on {kinds} kinds of machine, or on other numbers of threads (below)."
        said += " Their seconds do not compare between them."
    return [Paragraph(said), Table(columns, rows, (1, 2, 3, 5, 6))]


def failed_cells(failed: Sequence[dict[str, Any]]) -> list[Block]:
    """Each with its reason and the last lines of its log."""
    rows = [[record["cell"], record["run_info"]["reason"]] for record in failed]
    logs = [Code(f"Last lines of {record['cell']}", record["run_info"]["log_tail"]) for record in failed]
    return [Paragraph("They are tried again when the study is started again."), Table(("cell", "reason"), rows), *logs]


def surroundings(study: dict[str, Any], records: Sequence[dict[str, Any]], others: int) -> list[Block]:
    """What was left out, what all cells have in common, environments, code version."""
    blocks: list[Block] = []
    for name, count in study["excluded"].items():
        blocks.append(
            Paragraph(f"Left out: {count} cells, {name}." if count else f"The exclusion {name!r} met no cell.")
        )
    if others:
        blocks.append(
            Paragraph(
                f"{others} cells in this folder belong to an earlier grid, data or code version; they are not shown."
            )
        )
    fixed = [[name, json.dumps(value)] for name, value in study["fixed"].items()]
    if fixed:
        blocks.append(Table(("setting of all cells", "value"), fixed))
    environments: dict[str, int] = {}
    for record in records:
        if record["meta_info"]:
            text = json.dumps(record["meta_info"]["environment"], sort_keys=True)
            environments[text] = environments.get(text, 0) + 1
    for text, count in environments.items():
        rows = [[name, value] for name, value in _flat(json.loads(text))]
        if len(environments) > 1:
            blocks.append(Paragraph(f"Environment of {count} cells:"))
        blocks.append(Table(("environment", ""), rows))
    blocks.append(Paragraph(f"Code version {study['code']} (of what computes a cell)."))
    return blocks


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name} ")
        else:
            rows.append((f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return rows
