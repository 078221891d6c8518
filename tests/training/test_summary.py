from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from deepmlf_llm.commands import summarise as command
from deepmlf_llm.errors import RunError
from deepmlf_llm.training.summary import read_results, summarise, table


def result(seed: int, validation: dict[str, Any], test: dict[str, Any], metric: str = "mae") -> dict[str, Any]:
    return {
        "seed": seed,
        "config": {"metric_for_best_model": metric},
        "metrics": {"validation": validation, "test": test},
    }


RESULTS = {
    "seed-0": result(0, {"mae": 0.7, "acc2_non0": 0.80}, {"mae": 0.9, "acc2_non0": 0.84, "corr": math.nan}),
    "seed-1": result(1, {"mae": 0.6, "acc2_non0": 0.86}, {"mae": 1.0, "acc2_non0": 0.80, "corr": None}),
    "seed-2": result(2, {"mae": 0.8, "acc2_non0": 0.83}, {"mae": 0.8, "acc2_non0": 0.76, "corr": 0.5}),
}


def test_figures_are_those_worked_out_by_hand() -> None:
    found = summarise(RESULTS)
    mae = found["validation"]["mae"]
    assert mae == pytest.approx({"mean": 0.7, "deviation": 0.1, "best": 0.6, "worst": 0.8, "runs": 3})
    accuracy = found["test"]["acc2_non0"]
    assert accuracy == pytest.approx({"mean": 0.8, "deviation": 0.04, "best": 0.84, "worst": 0.76, "runs": 3})
    assert found["test"]["corr"] == {"mean": 0.5, "deviation": None, "best": 0.5, "worst": 0.5, "runs": 1}


def test_the_run_is_selected_on_validation_by_the_metric_of_the_runs() -> None:
    assert summarise(RESULTS)["selected"] == "seed-1"  # seed-2 is better on test, which must not count
    by_accuracy = {name: {**r, "config": {"metric_for_best_model": "eval_acc2_non0"}} for name, r in RESULTS.items()}
    by_accuracy["seed-2"] = result(2, {"mae": 0.1, "acc2_non0": 0.9}, {"mae": 0.8}, "acc2_non0")
    found = summarise(by_accuracy)
    assert (found["metric"], found["selected"]) == ("acc2_non0", "seed-2")
    assert summarise({"a": result(0, {"mae": math.nan}, {})})["selected"] is None


@pytest.mark.parametrize(("metric", "selected"), [("mae", "b"), ("f1_weighted", "a")])
def test_runs_that_select_by_loss_are_compared_by_what_they_record_and_it_is_said(metric: str, selected: str) -> None:
    runs = {
        name: result(0, {"acc2": 0.5, metric: value}, {metric: 0.4}, "loss") for name, value in (("a", 0.9), ("b", 0.6))
    }
    found = summarise(runs)
    assert (found["metric"], found["selected"]) == (metric, selected)
    assert f"select by, which their results do not record: they are compared by {metric}." in table(found)
    assert summarise(RESULTS)["note"] is None


def test_the_table_says_which_test_figure_belongs_to_the_run_selected_on_validation() -> None:
    lines = table(summarise(RESULTS)).splitlines()
    assert "| `seed-1` (best on validation) | 1 | 0.6000 | 1.0000 |" in lines
    assert "| validation | mean ± deviation | 0.7000 ± 0.1000 | 0.8300 ± 0.0300 | undefined |" in lines
    assert "| test | of the best on validation | 1.0000 | 0.8000 | undefined |" in lines
    assert "| test | best | 0.8000 | 0.8400 | 0.5000 |" in lines


def test_the_command_reads_finished_runs_and_refuses_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("seed-1", "seed-2"):
        Path(name).mkdir()
        Path(name, "result.json").write_text(json.dumps(RESULTS[name]))
    command.main(["seed-1", "seed-2", "--output", "out"])
    assert capsys.readouterr().out == Path("out/summary.md").read_text()
    assert json.loads(Path("out/summary.json").read_text())["validation"]["mae"]["mean"] == pytest.approx(0.7)
    Path("empty").mkdir()
    for wrong, words in ((["seed-1", "seed-1"], "given twice"), (["empty"], "no result.json")):
        with pytest.raises(RunError, match=words):
            read_results([Path(name) for name in wrong])
    Path("seed-1/result.json").write_text('{"metrics": {"test": {}}}')
    with pytest.raises(RunError, match="damaged"):
        read_results([Path("seed-1")])
