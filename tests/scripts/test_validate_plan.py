"""Mirrors ``scripts/validate_plan.py``."""

from __future__ import annotations

import json
import sys

import pytest

from scripts import validate_plan


def test_one_case_is_predicted_measured_and_written(tmp_path, monkeypatch, capsys):
    output = tmp_path / "found.json"
    words = ["validate_plan.py", "--output", str(output), "--only", "gpt2-joint"]
    monkeypatch.setattr(sys, "argv", words)
    validate_plan.main()
    row = json.loads(output.read_text())["gpt2-joint"]
    assert row["predicted"] == pytest.approx(row["measured"], rel=0.03)
    assert row["predicted_weights"] == row["measured_weights"]
    monkeypatch.setattr(sys, "argv", [*words, "--table"])
    capsys.readouterr()
    validate_plan.main()
    assert "| gpt2-joint |" in capsys.readouterr().out


def test_cases_have_names_of_their_own_and_texts_that_differ_in_length():
    cases = validate_plan.cases()
    assert len(cases) >= 40
    lengths = validate_plan.lengths_of({"text": 40, "batch": 8})
    assert (max(lengths), len(lengths)) == (40, 8)
    assert min(lengths) > 20


def test_seconds_are_told_beside_those_that_were_measured():
    case = validate_plan.cases()["toy-joint"]
    slow, fast = (
        validate_plan.seconds_table({"a step": {"case": case, "seconds": 0.5}}, tflops).splitlines()[-1]
        for tflops in (1e-4, 1e6)
    )
    assert slow.startswith("| a step | ")
    assert slow.split("|")[3].strip() == fast.split("|")[3].strip() == "0.500"
    assert float(slow.split("|")[2].split("(")[0]) > float(fast.split("|")[2].split("(")[0]) > 0
