"""Mirrors ``scripts/cost_to_70b.py``; the planner has tests of its own."""

from __future__ import annotations

import json

from scripts import cost_to_70b as cost


def test_the_page_shows_what_is_stored_and_what_was_measured():
    size = {"expected": 2 * 2**30, "high": 3 * 2**30}
    seconds = {"low": 0.1, "expected": 0.2, "high": 0.4}
    row = {"parameters": 70_600_000_000, "trained": 5_000_000, "flops": 3e12, "weights": 141e9}
    row |= {"memory": {"1 x one GPU": size, "16 x zero3": size}, "seconds_800": seconds, "seconds_312": seconds}
    measured = json.loads(cost.MEASURED.read_text())["rows"]
    page = cost.page({"llama-70b:nf4:cached": row}, measured)
    assert "## llama-70b: 70.6 billion parameters, 5 million of them trained" in page
    assert (
        "| nf4, cached | 141.0 | 2.0 .. 3.0 |  |  |  | 2.0 .. 3.0 | 3.00 | 0.20 (0.10 .. 0.40) | 0.20 (0.10 .. 0.40) |"
        in page
    )
    for name in measured:
        assert f"| {name} | " in page
    assert len(cost.cases()) == 30


def test_measured_steps_stand_beside_the_same_base_and_pass():
    size, seconds = {"expected": 3e9, "high": 4e9}, {"low": 0.1, "expected": 0.2, "high": 0.4}
    row = {"memory": {"1 x one GPU": size}, "seconds_800": seconds}
    found = {"peak_bytes": 2_500_000_000, "samples_per_second": {"median": 64.0}}
    steps = {"llama-1b:bfloat16:32": {"variants": {"fusion_cached": found}}, "seconds": 3}
    table = cost.steps_beside({f"llama-1b:none:{way}": row for way in cost.PASSES}, steps)
    assert table.splitlines()[-1] == "| llama-1b, bf16, cached | 3.0 | 2.5 | 0.20 (0.10 .. 0.40) | 0.50 |"
    assert table.count("llama-1b") == 1
    known = json.loads(cost.STEPS.read_text())["steps"]
    assert "llama-8b, nf4, joint" in cost.steps_beside({"llama-8b:nf4:joint": row}, known)


def test_a_cpus_measured_steps_stand_beside_the_plan():
    rows = json.loads(cost.ON_CPU.read_text())["rows"]
    table = cost.on_cpu_beside(rows)
    joint = rows["smollm2-whole-joint"]
    assert f"| joint | {joint['predicted_peak'][1] / 1e9:.2f} | {joint['peak'] / 1e9:.2f} | " in table
    assert table.count("\n| ") == 1 + 7
