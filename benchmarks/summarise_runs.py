"""Mean and standard deviation of several runs' metrics (seeds), as a Markdown table and JSON.

python benchmarks/summarise_runs.py runs/mosi-seed0 runs/mosi-seed1 runs/mosi-seed2 --output summary.json
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from deepmlf_llm.commands.shell import RecipeParser, run_recipe
from deepmlf_llm.errors import RunError


def summarise(directories: list[Path]) -> dict[str, dict[str, dict[str, float]]]:
    """Split -> metric -> mean and (n > 1) sample standard deviation over runs.

    Raises:
        RunError: a directory without a finished run.
    """
    results = []
    for directory in directories:
        if not (directory / "result.json").is_file():
            raise RunError(f"{directory}: no result.json: expected the directory of a finished run")
        results.append(json.loads((directory / "result.json").read_text())["metrics"])
    return {
        split: {
            name: {
                "mean": float(np.mean(values)),
                "std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
                "worst": float(max(values) if name == "mae" else min(values)),
            }
            for name in results[0][split]
            if all(r[split][name] is not None for r in results)
            for values in [[r[split][name] for r in results]]
        }
        for split in ("validation", "test")
    }


def main(argv: list[str] | None = None) -> None:
    parser = RecipeParser(description=__doc__, prog="summarise_runs.py")
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args(argv)
    summary = summarise(options.runs)
    names = list(summary["validation"])
    print("| split | " + " | ".join(names) + " |\n|---" + "|---" * len(names) + "|")
    for split, metrics in summary.items():
        cells = (f"{m['mean']:.3f} ± {m['std']:.3f}" for m in (metrics[name] for name in names))
        print(f"| {split} | " + " | ".join(cells) + " |")
    if options.output:
        options.output.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
