"""Several runs of one recipe in few numbers: mean, deviation, best and worst, on validation and on test.

The run that a user would take is the best on validation; its test figures are told apart from the best on test, which
nobody could have chosen.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepmlf_llm.errors import RunError
from deepmlf_llm.files import write_aside
from deepmlf_llm.markdown import code
from deepmlf_llm.paths import shown
from deepmlf_llm.reading import read_json
from deepmlf_llm.tasks.metrics import higher_is_better
from deepmlf_llm.training.run_directory import RESULT

SUMMARY, TABLE = "summary.json", "summary.md"
SPLITS = ("validation", "test")


def read_results(directories: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Name of each run -> its result.

    Raises:
        RunError: a directory without a finished run, or one that is given twice.
    """
    results: dict[str, dict[str, Any]] = {}
    for directory in directories:
        path = directory / RESULT
        try:
            result = read_json(path)
            if not set(SPLITS) <= result["metrics"].keys():
                raise KeyError(SPLITS)
        except FileNotFoundError:
            raise RunError(f"{shown(directory)}: no {RESULT}: expected the directory of a finished run") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise RunError(f"{shown(path)}: damaged, or no result of a run") from None
        if shown(directory) in results:
            raise RunError(f"{shown(directory)}: given twice")
        results[shown(directory)] = result
    return results


def summarise(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of several runs.

    Args:
        results: name of a run -> its ``result.json``.

    Returns:
        runs (seed, validation and test metrics of each), metric (that selects), note (where it is not the one that the
        runs name), selected (the run that is best by it on validation), validation and test (metric -> mean, deviation,
        best, worst, runs).
    """
    runs: dict[str, dict[str, Any]] = {
        name: {"seed": result.get("seed"), **{split: _defined(result["metrics"][split]) for split in SPLITS}}
        for name, result in results.items()
    }
    named = _selecting_metric(results)
    metric = _recorded(named, [run["validation"] for run in runs.values()])
    note = f"The runs name {named} to select by, which their results do not record: they are compared by {metric}."
    able = [name for name in runs if metric in runs[name]["validation"]]
    return {
        "runs": runs,
        "metric": metric,
        "note": None if metric == named else note,
        "selected": _best(able, lambda name: runs[name]["validation"][metric], metric) if able else None,
        **{split: _figures([run[split] for run in runs.values()]) for split in SPLITS},
    }


def _selecting_metric(results: Mapping[str, Mapping[str, Any]]) -> str:
    named = {
        str(r.get("config", {}).get("metric_for_best_model", "mae")).removeprefix("eval_") for r in results.values()
    }
    return named.pop() if len(named) == 1 else "mae"


def _recorded(named: str, runs: Sequence[Mapping[str, float]]) -> str:
    """The metric that is ``named``, or where no run has it (the loss is not part of results) the one that selects by
    default: mae of a scale, f1_weighted of classes."""
    found = dict.fromkeys(name for run in runs for name in run)
    return next((name for name in (named, "mae", "f1_weighted", *found) if name in found), named)


def _defined(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics that are numbers; constant predictions, for one, have no correlation."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def _best(candidates: Sequence[Any], value: Any, metric: str, worst: bool = False) -> Any:
    return (max if higher_is_better(metric) != worst else min)(candidates, key=value)


def _figures(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Metric -> its figures over the runs that have it; the deviation is that of a sample (n - 1)."""
    found = {}
    for metric in dict.fromkeys(name for run in runs for name in run):
        values = [run[metric] for run in runs if metric in run]
        found[metric] = {
            "mean": statistics.fmean(values),
            "deviation": statistics.stdev(values) if len(values) > 1 else None,
            "best": _best(values, float, metric),
            "worst": _best(values, float, metric, worst=True),
            "runs": len(values),
        }
    return found


def table(summary: Mapping[str, Any]) -> str:
    """The summary in Markdown."""
    metric, runs = summary["metric"], summary["runs"]
    names = list(dict.fromkeys(name for split in SPLITS for name in summary[split]))
    lines = [f"| run | seed | {' | '.join(f'{split} {metric}' for split in SPLITS)} |", "|---|---|---|---|"]
    for name, run in runs.items():
        cells = [_shown(run[split].get(metric)) for split in SPLITS]
        chosen = " (best on validation)" if name == summary["selected"] else ""
        lines.append(f"| {code(name, in_table=True)}{chosen} | {run['seed']} | {' | '.join(cells)} |")
    lines += ["", f"| {len(runs)} runs | | {' | '.join(names)} |", "|---|---" + "|---" * len(names) + "|"]
    for split in SPLITS:
        figures = summary[split]
        rows = {
            "mean ± deviation": [_mean(figures.get(name)) for name in names],
            "best": [_shown(figures.get(name, {}).get("best")) for name in names],
            "worst": [_shown(figures.get(name, {}).get("worst")) for name in names],
        }
        if split == "test" and summary["selected"] is not None:
            selected = runs[summary["selected"]][split]
            rows["of the best on validation"] = [_shown(selected.get(name)) for name in names]
        lines += [f"| {split} | {row} | {' | '.join(cells)} |" for row, cells in rows.items()]
    if summary["note"] is not None:
        lines += ["", summary["note"]]
    return "\n".join(lines) + "\n"


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _mean(figures: Mapping[str, Any] | None) -> str:
    if figures is None:
        return "undefined"
    deviation = figures["deviation"]
    return f"{figures['mean']:.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")


def write_summary(directory: Path, summary: Mapping[str, Any]) -> None:
    """``summary.json`` and ``summary.md`` in ``directory``.

    Raises:
        FileError: they cannot be written.
    """
    write_aside(directory / SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_aside(directory / TABLE, table(summary))
