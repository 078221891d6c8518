"""What benchmarks found, as Markdown: printed after a run, and written into docs/speed.md from their JSON files.

A table of a page stands between ``<!-- table NAME of FILE -->`` and ``<!-- end of table -->``; FILE lies in
``benchmarks/results``.

    python benchmarks/tables.py [docs/speed.md]
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepmlf_llm.markdown import table as markdown

RESULTS = Path(__file__).resolve().parent / "results"
PAGE = RESULTS.parents[1] / "docs" / "speed.md"
_TABLE = re.compile(r"(<!-- table (\S+) of (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
GOALS = {
    "joint": 3, "fusion": 5, "fusion_cached": 6.5, "cached_recipe": 10, "cached_four": 10, "shared_text": 10,
    "cached_recipe_bf16": 15, "cached_four_bf16": 15, "shared_text_bf16": 15,
}  # fmt: skip
"""Name of a variant, or of its predictions for texts met before -> how many times faster than the yardstick."""
MEMORY_GOALS = {"joint": 0.5, "fusion": 0.3, "fusion_cached": 0.35}


def ratios(result: dict[str, Any]) -> str:
    """Each variant against the yardstick, a column a cell: median, quartiles, seconds a step."""
    cells, rows = list(result["cells"].values()), []
    for part in ("training", "inference"):
        for name in cells[0][part]:
            goal = f">= {GOALS[name]:g}" if name in GOALS else ""
            found = [(cell[part][name]["ratio"], cell[part][name]["step_seconds"]["median"]) for cell in cells]
            times = [f"{r['median']:.2f} ({r['low']:.2f} .. {r['high']:.2f}), {s:.2f} s" for r, s in found]
            rows.append([f"{part}, {name}", goal, *times])
    return markdown(["x yardstick (quartiles), s a step", "goal", *result["cells"]], rows)


def memory(result: dict[str, Any]) -> str:
    """Peaks, and their share of the yardstick's."""
    whole, rows = result["memory"]["yardstick"]["peak_bytes"], []
    for name, facts in result["memory"].items():
        goal = f"<= {MEMORY_GOALS[name]:g}" if name in MEMORY_GOALS else ""
        rows.append([name, f"{facts['peak_bytes'] / 1e9:.2f}", f"{facts['peak_bytes'] / whole:.2f}", goal])
    return markdown(["peak memory", "GB", "x yardstick", "goal"], rows)


def arithmetic(result: dict[str, Any]) -> str:
    """FLOPs, their ratio, and the share of the measured time that they take at the matmul rate."""
    cell, facts = _detailed(result)
    counts, rows = facts["arithmetic"], []
    for kind in ("training", "inference"):
        for name, count in counts[kind].items():
            rate = counts["matmul_rate"]["bfloat16" if name.endswith("_bf16") else "float32"]
            seconds, step = count / rate, cell[kind][name]["step_seconds"]["median"]
            ratio = counts[kind]["yardstick"] / count
            row = [f"{kind}, {name}", f"{count / 1e9:.0f}", f"{ratio:.1f}", f"{seconds:.2f}", f"{step:.2f}"]
            rows.append([*row, f"{seconds / step:.0%}"])
    rates = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {name}" for name, rate in counts["matmul_rate"].items())
    table = markdown(["arithmetic", "GFLOP", "yardstick / ours", "s at matmul rate", "s measured", "share"], rows)
    return f"{table}\n\nMatmul rate: {rates}."


def reading(result: dict[str, Any]) -> str:
    """Reading texts into a cache."""
    rows = [[name, f"{x['share_of_matmul_rate']:.0%}"] for name, x in _detailed(result)[1]["building"].items()]
    return markdown(["reading texts into a cache", "of the matmul rate"], rows)


def latency(result: dict[str, Any]) -> str:
    """Of inference.py."""
    rows = []
    for name, facts in result["variants"].items():
        ms, rate = facts["latency_ms"], facts["utterances_per_second"]
        cells = [f"{ms[text]['median']:.0f} / {ms[text]['p95']:.0f}" for text in ("new", "met")]
        rows.append([name, *cells, *(f"{rate[text]['median']:.1f}" for text in ("new", "met"))])
        if "difference" in facts:
            rows[-1].append(f"{facts['difference']['mean']:.4f} / {facts['difference']['largest']:.4f}")
    columns = ["model", "one utterance, ms (median / p95)", "text met before", "utterances/s, batches of 32"]
    return markdown([*columns, "text met before", "differs from the first (mean / largest)"], rows)


def growth(result: dict[str, Any]) -> str:
    """Of scaling.py: exponents of FLOPs and of seconds."""
    sweeps = result["sweeps"].values()
    names, rows = list(next(iter(sweeps))["variants"]), []
    for facts in sweeps:
        keys = ("flops_exponent", "flops_exponent_at_top", "exponent")
        lines = [[round(facts["variants"][name][key], 2) + 0.0 for key in keys] for name in names]  # no -0.00
        cells = [f"{whole:.2f} ({top:.2f}); {seconds:.2f}" for whole, top, seconds in lines]
        rows.append([f"{facts['label']}, {facts['sizes'][0]} to {facts['sizes'][-1]}", *cells])
    return markdown(["p of FLOPs (between the two largest); p of seconds", *names], rows)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    table.__name__: table for table in (ratios, memory, arithmetic, reading, latency, growth)
}


def show(result: dict[str, Any]) -> None:
    """The report of run.py."""
    detailed = any("building" in cell.get("details", {}) for cell in result["cells"].values())
    for name in ("ratios", "memory", *(("arithmetic", "reading") if detailed else ())):
        print(f"{TABLES[name](result)}\n")
    print(machine(result))


def machine(result: dict[str, Any]) -> str:
    """A line under a table: where and on what it was measured."""
    found = result["environment"]
    packages = ", ".join(f"{name} {found['packages'][name]}" for name in ("torch", "transformers"))
    commit = str((found.get("git") or {}).get("commit", "?"))[:7]
    return f"{found['cpu']}, {found['threads']} threads, {packages}, commit {commit}."


def rewrite(page: str, results: Path = RESULTS) -> str:
    """``page`` with every table of a file that is there made again from it."""

    def table(found: re.Match[str]) -> str:
        begin, name, file, end = found.groups()
        path = results / file
        if not path.is_file():
            return found[0]
        result = json.loads(path.read_text(encoding="utf-8"))
        return f"{begin}{TABLES[name](result)}\n\n{machine(result)}\n{end}"

    return _TABLE.sub(table, page)


def _detailed(result: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    cell = next(cell for cell in result["cells"].values() if "details" in cell)
    return cell, cell["details"]


if __name__ == "__main__":
    page = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    page.write_text(rewrite(page.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"tables made again: {page}")
