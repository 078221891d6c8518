"""Mirrors ``deepmlf_llm/statistics/seeds.py``."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from deepmlf_llm.statistics.seeds import t_interval

values = st.lists(st.floats(-10, 10), min_size=2, max_size=8)


@given(values)
def test_interval_is_students(sample):
    found = t_interval(sample)
    assert found.mean == pytest.approx(np.mean(sample), abs=1e-12)
    error = stats.sem(sample)
    if error > 1e-9:
        low, high = stats.t.interval(0.95, len(sample) - 1, np.mean(sample), error)
        assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9, abs=1e-12)


def test_one_value_has_no_interval():
    found = t_interval([0.5])
    assert (found.mean, found.half, found.text()) == (0.5, None, "0.500")
    assert not found.excludes_zero
    assert t_interval([1.0, 3.0]).text(1) == "2.0 ± 12.7"
