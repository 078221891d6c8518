"""What is measured is what is said: times, spread, and a process of its own."""

import json
import os
import time

import pytest
import torch
from measuring import Clock, environment, in_own_process, operations, summary, write_json

from deepmlf_llm.errors import RunError


def test_clock_collects_one_time_a_block():
    clock = Clock()
    for _ in range(2):
        with clock:
            time.sleep(0.02)
    assert len(clock.seconds) == 2
    assert all(0.02 <= seconds < 5 for seconds in clock.seconds)


@pytest.mark.parametrize(
    ("values", "expected"), [([3.0], (3, 3, 3)), ([1.0, 2.0, 3.0, 4.0, 5.0], (2, 3, 4)), ([1.0, 3.0], (1.5, 2, 2.5))]
)
def test_summary_is_median_and_quartiles(values, expected):
    found = summary(values)
    assert (found["low"], found["median"], found["high"]) == expected
    assert found["n"] == len(values)


def test_operations_names_where_the_time_went():
    a = torch.randn(200, 200)
    found = operations(lambda: a @ a, most=2)
    assert "aten::mm" in found
    assert len(found) <= 2
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_environment_says_what_a_figure_needs_and_nothing_about_this_one_machine():
    import platform

    facts = environment()
    assert facts["threads"] >= 1
    assert facts["cpu"]
    assert facts["packages"]["torch"]
    assert platform.node() not in json.dumps(facts) or not platform.node()


def test_a_function_runs_in_its_own_process_and_costs_only_that():
    assert in_own_process(os.getpid) != os.getpid()
    with pytest.raises(RunError, match="ValueError: invalid literal for int"):
        in_own_process(int, "x")
    with pytest.raises(RunError, match="ended by itself, exit code 3"):
        in_own_process(os._exit, 3)
    with pytest.raises(RunError, match="ran past 1 s and was killed"):
        in_own_process(time.sleep, 60, seconds=1)


def test_json_is_written_aside_or_not_at_all(tmp_path):
    write_json(None, {})
    write_json(tmp_path / "new" / "r.json", {"a": [1]})
    assert json.loads((tmp_path / "new" / "r.json").read_text()) == {"a": [1]}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["r.json"]
