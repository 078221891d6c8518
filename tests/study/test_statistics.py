"""Mirrors ``deepmlf_llm/study/statistics.py``."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepmlf_llm.study.configurations import Configuration
from deepmlf_llm.study.statistics import different, effects, fit_log


def configuration(layers: int, tokens: int, **mae: float) -> Configuration:
    records = {int(seed[1:]): {"metrics": {"test": {"mae": value}}} for seed, value in mae.items()}
    return Configuration({"layers": layers, "tokens": tokens}, records)


def test_effects_pair_what_differs_in_one_setting():
    found = effects(
        [
            configuration(6, 4, s1=1.0, s2=1.2),
            configuration(6, 8, s1=0.9, s2=1.0),
            configuration(12, 4, s1=0.8, s2=1.1),
            configuration(12, 8, s1=0.7, s2=0.8),
            configuration(30, 4, s1=0.5, s2=0.6),
        ],
        ["layers", "tokens"],
        "mae",
    )
    assert [(e.axis, e.before, e.after, e.pairs) for e in found] == [
        ("layers", 6, 12, 2),
        ("layers", 12, 30, 1),
        ("tokens", 4, 8, 2),
    ]
    assert found[0].change.mean == pytest.approx(((-0.2 - 0.2) / 2 + (-0.1 - 0.2) / 2) / 2)
    assert found[2].change.n == 2


def test_a_pair_without_all_seeds_is_left_out():
    found = effects(
        [
            configuration(6, 4, s1=1.0, s2=1.0),
            configuration(12, 4, s1=0.9, s2=0.8),
            configuration(6, 8, s1=1.0),
            configuration(12, 8, s1=5.0, s2=5.0),
        ],
        ["layers", "tokens"],
        "mae",
    )
    assert found[0].pairs == 1
    assert found[0].change.mean == pytest.approx(-0.15)


def test_no_curve_through_few_places():
    assert fit_log([1, 10, 100], [1, 2, 3]) is None
    assert fit_log([10, 10.1, 10.2, 100, 101], [1, 1, 1, 2, 2]) is None  # two clusters
    assert fit_log([0, 1, 2, 3], [1, 2, 3, 4]) is None
    assert different([10, 10.1, 100]) == 2


@given(st.floats(-3, 3), st.floats(-3, 3))
def test_a_line_in_log_x_is_found(a, b):
    xs = [1, 3, 10, 50, 1000]
    fit = fit_log(xs, [a + b * np.log10(x) for x in xs])
    assert fit.at(20) == pytest.approx(a + b * np.log10(20), abs=1e-9)
    assert fit.slope.mean == pytest.approx(b, abs=1e-9)
    assert fit.slope.half == pytest.approx(0, abs=1e-6)
