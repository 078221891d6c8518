"""Mirrors ``scripts/validate_plan.py``."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from deepmlf_llm.planning.cpu_rates import CpuRates
from scripts import validate_plan
from scripts.planner_cases import lengths_of


def test_one_case_is_predicted_measured_and_written(tmp_path, monkeypatch, capsys):
    output = tmp_path / "found.json"
    words = ["validate_plan.py", "--output", str(output), "--only", "gpt2-joint"]
    monkeypatch.setattr(sys, "argv", words)
    validate_plan.main()
    found = json.loads(output.read_text())
    row = found["rows"]["gpt2-joint"]
    assert found["machine"]["environment"]["packages"]["torch"] == torch.__version__
    assert row["predicted"] == pytest.approx(row["measured"], rel=0.03)
    assert row["predicted_weights"] == row["measured_weights"]
    monkeypatch.setattr(sys, "argv", [*words, "--table"])
    capsys.readouterr()
    validate_plan.main()
    assert "| gpt2-joint |" in capsys.readouterr().out


def test_cases_have_names_of_their_own_and_texts_that_differ_in_length():
    cases = validate_plan.cases()
    assert len(cases) >= 40
    lengths = lengths_of({"text": 40, "batch": 8})
    assert (max(lengths), len(lengths)) == (40, 8)
    assert min(lengths) > 20


def test_seconds_are_told_beside_those_that_were_measured():
    case = validate_plan.cases()["toy-joint"]
    slow, fast = (
        validate_plan.seconds_table({"rows": {"a step": {"case": case, "seconds": 0.5}}}, tflops).splitlines()[-1]
        for tflops in (1e-4, 1e6)
    )
    assert slow.startswith("| a step | ")
    assert slow.split("|")[3].strip() == fast.split("|")[3].strip() == "0.500"
    assert float(slow.split("|")[2].split("(")[0]) > float(fast.split("|")[2].split("(")[0]) > 0


@pytest.mark.slow
@pytest.mark.cpu
def test_a_pair_is_measured_beside_its_plan(tmp_path):
    output, name = tmp_path / "pairs.json", "toy-joint-zero2_offload"
    command = [sys.executable, validate_plan.__file__, "--of", "pairs", "--output", str(output), "--only", name]
    subprocess.run(command, check=True, capture_output=True, cwd=validate_plan.REPOSITORY)
    (pair,) = json.loads(output.read_text())["rows"].values()
    assert pair["predicted"]["total"]["expected"] == pytest.approx(pair["measured"], rel=0.1)
    assert pair["shapes"]["input_ids"][0] == 8


@pytest.mark.slow
@pytest.mark.cpu
def test_a_process_is_measured_beside_its_plan():
    case = validate_plan.process_cases()["toy-text-alone"]
    found = validate_plan.in_own_process(json.dumps(case), 3)
    rates = CpuRates(1, 1e11, 5e11, 2e10, 5e-6, 1e9, imported=found["imported"], process=found["imported"] + (40 << 20))
    told = validate_plan.predicted_process(case, {"rates": rates.as_dict()})
    assert told["predicted_peak"][1] == pytest.approx(found["peak"], rel=0.15)
    assert found["peak"] == max(found["loading_peak"], found["stepping_peak"])
    assert 0 < found["seconds"] < 60


def test_pairs_are_of_every_engine_that_a_cpu_runs():
    engines = {name.split("-")[-1] for name in validate_plan.pair_cases()}
    shipped = {path.stem for path in (validate_plan.REPOSITORY / "ds_configs").glob("*.json")}
    assert engines == {"ddp"} | shipped - {"zero3_nvme"}
