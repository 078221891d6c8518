"""What run.py found, as Markdown."""

from __future__ import annotations

from typing import Any

from arithmetic import show_arithmetic
from measuring import print_machine, print_markdown


def show(result: dict[str, Any]) -> None:
    """The Markdown report."""
    rows = []
    for name, facts in result["training"].items():
        rate, step = facts["samples_per_second"], facts["step_seconds"]
        ratio = "1" if name == "yardstick" else _times(facts["ratio"])
        memory = result["memory"][name]["peak_bytes"]
        share = memory / result["memory"]["yardstick"]["peak_bytes"]
        kernel = facts["kernel_seconds"]["median"] / step["median"]
        rows.append([name, _times(rate), ratio, f"{step['median']:.2f}", f"{kernel:.0%}"])
        rows[-1] += [f"{memory / 1e9:.2f}", f"{share:.2f}", f"{facts['trainable_parameters'] / 1e6:.2f} M"]
    columns = [
        "training",
        "samples/s (quartiles)",
        "x yardstick",
        "s a step",
        "of it kernel",
        "peak GB",
        "share",
        "trainable",
    ]
    print_markdown(columns, rows)
    for name, facts in result["inference"].items():
        rate = facts["samples_per_second"]["median"]
        ratio = f", {_times(facts['ratio'])} x the yardstick" if "ratio" in facts else ""
        print(f"\nInference, {name}: {rate:.1f} samples/s{ratio}.")
    for name, cache in result["text_cache"].items():
        held = f"{cache['bytes'] / 1e6:.0f} MB for {cache['texts']} texts"
        print(f"\nText cache, {name}: {held}; putting a batch together takes {cache['share_of_step']:.1%} of the step.")
    for name, facts in result["building"].items():
        print(f"\nReading {facts['texts']} texts, {name}: {facts['share_of_matmul_rate']:.0%} of the matmul rate.")
    print()
    print_markdown(
        ["polarities against fp32", "mean difference", "largest"],
        [[name, f"{x['mean']:.1e}", f"{x['largest']:.1e}"] for name, x in result["precision"].items()],
    )
    if "arithmetic" in result:
        show_arithmetic(result)
    print()
    print_markdown(
        ["a batch's text out of a cache", "MB", "ms", "share of a step"],
        [
            [name, f"{x['bytes'] / 1e6:.0f}", f"{x['seconds'] * 1e3:.1f}", f"{x['share_of_step']:.1%}"]
            for name, x in result["assembly"].items()
        ],
    )
    print_machine(result["environment"])
    for name, operators in result.get("profile", {}).items():
        print(
            f"\n{name}, seconds by operator: " + ", ".join(f"{op} {seconds:.2f}" for op, seconds in operators.items())
        )


def _times(values: dict[str, Any]) -> str:
    return f"{values['median']:.2f} ({values['low']:.2f} .. {values['high']:.2f})"
