"""The table of rules: what each data set's labels mean."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from deepmlf_llm.tasks.registry import REGRESSION
from deepmlf_llm.tasks.regression import TEXT_CASES, Bins, Rounded, Signs


def test_every_task_has_a_whole_set_of_rules():
    for task in REGRESSION.values():
        assert task.low < 0 < task.high
        assert task.text_case in TEXT_CASES
        polarity = np.array([task.low, 0.0, task.high])
        assert task.classes["acc3"](polarity).tolist() == [0, 1, 2]  # negative, neutral, positive
        assert all(
            signs(polarity).tolist() in ([False, False, True], [False, True, True]) for signs in task.signs.values()
        )


def test_rounding_goes_to_the_even_neighbour():
    y = np.array([-9, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 9], dtype=np.float32)
    assert (Rounded(3)(y) - 3).tolist() == [-3, -2, -2, 0, 0, 2, 2, 3]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bins_are_closed_above_in_the_dtype_of_the_values(dtype):
    edges = np.array([-0.7, -0.1, 0.1, 0.7], dtype=dtype)
    bins = Bins((-0.7, -0.1, 0.1, 0.7))
    assert bins(edges).tolist() == [0, 1, 2, 3]
    assert bins(np.nextafter(edges, dtype(1))).tolist() == [1, 2, 3, 4]


def test_zero_is_where_the_rule_puts_it():
    y = np.array([-1.0, 0.0, 1.0])
    assert Signs("positive")(y).tolist() == [False, True, True]
    assert Signs("negative")(y).tolist() == Signs("none")(y).tolist() == [False, False, True]
    assert Signs("none").counted(y).tolist() == [True, False, True]
    assert Signs("negative").counted(y).all()


def test_sims_v2_has_the_rules_of_sims():
    assert replace(REGRESSION["simsv2"], name="sims", title="CH-SIMS") == REGRESSION["sims"]
