"""Mirrors ``scripts/planner_tables.py``."""

from __future__ import annotations

import pytest

from deepmlf_llm.errors import FileError
from scripts.planner_tables import pairs_table, process_table, table, write_page

ENVIRONMENT = {
    "packages": {"torch": "2.13.0", "transformers": "5.24.0", "deepspeed": "0.19.8"},
    "git": {"commit": "0123456789abcdef", "modified": False},
    "machine": {"cpus": 2, "threads": 1},
}
RATES = {
    **{"threads": 1, "flops": 1e11, "narrow_flops": 5e11, "moved": 2e10, "operator": 4e-6, "unpacked": 1e9},
    **{"imported": 3e8, "process": 4e8},
}
MACHINE = {"environment": ENVIRONMENT, "cpu": "a CPU", "rates": RATES}


def cells(table: str, name: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(f"| {name}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_errors_are_of_what_was_measured_and_what_lies_above_is_counted():
    measured = {"loading_peak": 5e8, "stepping_peak": 1e9, "peak": 1e9, "seconds": 2.0}
    told = {"predicted_peak": [8e8, 9e8, 1.1e9], "predicted_stepping": 9e8, "predicted_seconds": 3.0, "tensors": 5e8}
    low = {**told, "predicted_peak": [7e8, 8e8, 9e8], "predicted_seconds": 1.0, "tensors": 1e8}
    table = process_table({"machine": MACHINE, "rows": {"one": measured | told, "two": measured | low}})
    assert cells(table, "one")[3] == "-10%"
    assert cells(table, "one")[-1] == "+50%"
    assert cells(table, "two")[3] == "-20%"
    assert cells(table, "**mean")[3] == "15%"
    assert cells(table, "**largest")[-1] == "50%"
    assert cells(table, "**mean of the 1 with over")[3] == "10%"
    assert "1 of 2" in table
    assert "100 GFLOP/s" in table


def test_a_pair_that_takes_more_than_the_high_estimate_is_seen():
    rows = {
        name: {"measured": size, "predicted": {"total": {"low": 9e6, "expected": 1e7, "high": 1.1e7}}}
        for name, size in {"fits": 1e7, "does not": 1.2e7}.items()
    }
    table = pairs_table({"machine": MACHINE, "rows": rows})
    assert cells(table, "fits")[-1] == "yes"
    assert cells(table, "does not")[-1] == "NO"


def test_each_table_says_machine_versions_and_commit():
    row = {"predicted": 9e6, "measured": 1e7, "predicted_step": 1.1e6, "measured_step": 1e6}
    there = {"machine": MACHINE, "rows": {"one": row}}
    tables = [table(there), pairs_table({"machine": MACHINE, "rows": {}}), process_table({**there, "rows": {}})]
    said = "Measured on a CPU (1 of 2 cores), torch 2.13.0, transformers 5.24.0, deepspeed 0.19.8, commit 0123456."
    assert [text.splitlines()[0] for text in tables] == [said] * 3
    assert cells(tables[0], "one")[3:] == ["-10.0%", "+10.0%"]
    dirty = {**ENVIRONMENT, "git": {"commit": "0123456789abcdef", "modified": True}}
    changed = {**there, "machine": {**MACHINE, "environment": dirty}}
    assert "commit 0123456 with changes." in table(changed)
    on_gpu = {**ENVIRONMENT, "machine": {**ENVIRONMENT["machine"], "gpus": {"NVIDIA H100": 1}}}
    assert table({**there, "machine": {**MACHINE, "environment": on_gpu}}).startswith("Measured on NVIDIA H100, torch")


def test_a_table_goes_to_its_place_and_nothing_else_changes(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a, by scripts/validate_plan.py -->\nold\n<!-- end of a -->\nbehind\n")
    write_page([("a", "new")], page)
    assert page.read_text() == ("before\n<!-- a, by scripts/validate_plan.py -->\n\nnew\n\n<!-- end of a -->\nbehind\n")
    with pytest.raises(FileError, match="expected <!-- b, by"):
        write_page([("b", "new")], page)
    assert "new" in page.read_text()
