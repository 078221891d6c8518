"""The tables of docs/planner.md, from what was measured; and the page with them in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean
from typing import Any

from deepmlf_llm.errors import FileError
from deepmlf_llm.files import write_aside
from deepmlf_llm.planning.flops import StepGeometry, step_flops
from deepmlf_llm.planning.packed import packed_linears
from deepmlf_llm.planning.rates import step_seconds
from deepmlf_llm.training.planned import CUDA_BLOCK
from scripts.planner_cases import dry_step

LARGE = 300_000_000  # bytes of tensors: less is lost beside a process's own memory
PAGE = Path(__file__).resolve().parent.parent / "docs" / "planner.md"


def table(found: dict[str, Any]) -> str:
    """Markdown: bytes of tensors of a step."""
    rows = found["rows"]
    lines = [_machine(found), "", "| configuration | predicted MB | measured MB | error | of the step alone |"]
    lines.append("|---" * 5 + "|")
    whole, alone = [], []
    for name, row in rows.items():
        whole.append(row["predicted"] / row["measured"] - 1)
        alone.append(row["predicted_step"] / row["measured_step"] - 1)
        sizes = f"{row['predicted'] / 1e6:.2f} | {row['measured'] / 1e6:.2f}"
        lines.append(f"| {name} | {sizes} | {whole[-1]:+.1%} | {alone[-1]:+.1%} |")
    lines.append(f"| **mean of {len(rows)}, without sign** | | | {_mean(whole, 1)} | {_mean(alone, 1)} |")
    lines.append(f"| **largest** | | | {_largest(whole, 1)} | {_largest(alone, 1)} |")
    return "\n".join(lines)


def process_table(found: dict[str, Any]) -> str:
    """Markdown: resident memory and seconds of processes of their own, and the machine they ran on."""
    rows, rates = found["rows"], found["machine"]["rates"]
    columns = ["configuration", "RSS predicted (low .. high) MB", "measured MB", "error", "error of the steps alone"]
    head = "| " + " | ".join([*columns, "step predicted s", "measured s", "error"]) + " |"
    lines = [_machine(found), "", _rates(rates), "", head, "|---" * 8 + "|"]
    errors: dict[str, list[float]] = {}
    for name, row in rows.items():
        low, expected, high = (size / 1e6 for size in row["predicted_peak"])
        pairs = {
            "resident": (1e6 * expected, row["peak"]),
            "stepping": (row["predicted_stepping"], row["stepping_peak"]),
        }
        pairs["seconds"] = (row["predicted_seconds"], row["seconds"])
        off = {what: told / measured - 1 for what, (told, measured) in pairs.items()}
        for what, error in off.items():
            errors.setdefault(what, []).append(error)
            if row["tensors"] > LARGE:
                errors.setdefault(f"large {what}", []).append(error)
        memory = f"{expected:.0f} ({low:.0f} .. {high:.0f}) | {row['peak'] / 1e6:.0f} | {off['resident']:+.0%}"
        time = f"{row['predicted_seconds']:.3f} | {row['seconds']:.3f} | {off['seconds']:+.0%}"
        lines.append(f"| {name} | {memory} | {off['stepping']:+.0%} | {time} |")

    def summary(word: str, of: Callable[[list[float]], str], large: str = "") -> str:
        resident, stepping, seconds = (of(errors.get(large + k, [])) for k in ("resident", "stepping", "seconds"))
        return f"| **{word}** | | | {resident} | {stepping} | | | {seconds} |"

    lines.append(summary(f"mean of {len(rows)}, without sign", _mean))
    count = len(errors.get("large resident", []))
    lines.append(summary(f"mean of the {count} with over {LARGE // 10**6} MB of tensors", _mean, "large "))
    lines.append(summary("largest", _largest))
    above = sum(row["peak"] > row["predicted_peak"][2] for row in rows.values())
    return "\n".join([*lines, "", f"Above the high estimate of its memory: {above} of {len(rows)}."])


def pairs_table(found: dict[str, Any]) -> str:
    """Markdown: bytes of tensors of one of two processes."""
    lines = [
        "| base, scope, engine | predicted (low .. high) MB | measured MB | error | fits by the high estimate |",
        "|---" * 5 + "|",
    ]
    errors = []
    for name, row in found["rows"].items():
        told, peak = row["predicted"]["total"], row["measured"]
        errors.append(told["expected"] / peak - 1)
        sizes = f"{told['expected'] / 1e6:.2f} ({told['low'] / 1e6:.2f} .. {told['high'] / 1e6:.2f}) | {peak / 1e6:.2f}"
        lines.append(f"| {name} | {sizes} | {errors[-1]:+.1%} | {'yes' if peak <= told['high'] else 'NO'} |")
    lines.append(f"| **mean of {len(errors)}, without sign** | | | {_mean(errors, 1)} | |")
    lines.append(f"| **largest** | | | {_largest(errors, 1)} | |")
    return "\n".join([_machine(found), "", *lines])


def _machine(found: dict[str, Any]) -> str:
    """What it ran on, and which code: a sentence."""
    if "machine" not in found:
        return "Measured on a machine that was not written down."
    there = found["machine"]["environment"]
    gpus, cpu = there["machine"].get("gpus"), found["machine"]["cpu"]
    computed = ", ".join(gpus) if gpus else f"{cpu} ({there['machine']['threads']} of {there['machine']['cpus']} cores)"
    versions = ", ".join(f"{name} {there['packages'][name]}" for name in ("torch", "transformers", "deepspeed"))
    code = there["git"] or {"commit": "no checkout", "modified": False}
    changed = " with changes" if code["modified"] else ""
    return f"Measured on {computed}, {versions}, commit {code['commit'][:7]}{changed}."


def _rates(rates: dict[str, float]) -> str:
    return (
        f"Constants of that machine, measured by the same command ({rates['threads']} thread): products "
        f"{rates['flops'] / 1e9:.0f} GFLOP/s in fp32 and {rates['narrow_flops'] / 1e9:.0f} in bf16; additions move "
        f"{rates['moved'] / 1e9:.1f} GB/s; an operator takes {rates['operator'] * 1e6:.1f} microseconds; "
        f"{rates['unpacked'] / 1e9:.2f} billion 4-bit weights a second are made whole; a process has "
        f"{rates['imported'] / 1e6:.0f} MB when it has imported what a run imports, {rates['process'] / 1e6:.0f} MB "
        "when it has computed."
    )


def _mean(errors: list[float], digits: int = 0) -> str:
    return f"{mean(map(abs, errors)):.{digits}%}" if errors else ""


def _largest(errors: list[float], digits: int = 0) -> str:
    return f"{max(map(abs, errors)):.{digits}%}" if errors else ""


def seconds_table(found: dict[str, Any], tflops: float) -> str:
    """Markdown: seconds of a step on a GPU, expected with its measured rate of matrix products."""
    lines = ["| configuration | expected (low .. high) s | measured s | error |", "|---|---|---|---|"]
    for name, row in found["rows"].items():
        case = row["case"]
        model, step, bytes_ = dry_step(case, CUDA_BLOCK)
        lm = model.fused_decoder.decoder.lm
        packed = len(packed_linears(lm, lm.get_output_embeddings())) if "quantization" in case else 0
        geometry = StepGeometry(step.utterances, step.text_tokens, step.frames)
        flops = step_flops(model, geometry, step.text_cached)
        told = step_seconds(flops, bytes_.operators, tflops, 1, step.checkpointing, packed)
        expected = f"{told.expected:.3f} ({told.low:.3f} .. {told.high:.3f})"
        lines.append(f"| {name} | {expected} | {row['seconds']:.3f} | {told.expected / row['seconds'] - 1:+.0%} |")
    return "\n".join(lines)


def write_page(tables: Iterable[tuple[str, str]], page: Path = PAGE) -> None:
    """Puts tables in their places: between ``<!-- NAME, by scripts/validate_plan.py -->`` and ``<!-- end of NAME -->``.

    Raises:
        FileError: the page has no such place.
    """
    text = page.read_text(encoding="utf-8")
    for name, table in tables:
        begin, end = f"<!-- {name}, by scripts/validate_plan.py -->", f"<!-- end of {name} -->"
        before, found, rest = text.partition(begin)
        _, ended, after = rest.partition(end)
        if not (found and ended):
            raise FileError(f"{page.name}: expected {begin} and behind it {end}")
        text = f"{before}{begin}\n\n{table}\n\n{end}{after}"
    write_aside(page, text)
