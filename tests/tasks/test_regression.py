"""The table of rules: what each data set's labels mean."""

from __future__ import annotations

import numpy as np
import pytest

from deepmlf_llm.errors import ConfigError
from deepmlf_llm.tasks.regression import TASKS, TEXT_CASES, Bins, Rounded, Signs, described_ranges, task_of


def test_every_task_has_a_whole_set_of_rules():
    for task in TASKS.values():
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


def test_an_unknown_data_set_is_named_with_the_nearest():
    with pytest.raises(
        ConfigError, match=r"dataset='sim': expected one of mosi, mosei, sims \(did you mean 'sims'\?\)"
    ):
        task_of("sim")


def test_ranges_in_words():
    assert described_ranges() == "mosi and mosei [-3, 3], sims [-1, 1]"
