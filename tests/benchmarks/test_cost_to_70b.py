"""Mirrors ``benchmarks/cost_to_70b.py``; the planner has tests of its own."""

from __future__ import annotations

import json

import cost_to_70b as cost


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
