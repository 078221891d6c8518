"""Mirrors ``deepmlf_llm/study/statistics.py``."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepmlf_llm.statistics.seeds import t_interval
from deepmlf_llm.study.configurations import Configuration
from deepmlf_llm.study.statistics import (
    different,
    effects,
    fit_log,
    front,
    reading,
    seeds_named,
    seeds_to_tell,
    signed,
)


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


def test_nothing_heard_comes_first_and_base_models_by_size():
    def of(base: str, size: int, **values: str) -> Configuration:
        record = {"metrics": {"test": {"mae": 1.0}}, "train_info": {"parameters": {"total": size, "trainable": 1}}}
        return Configuration({"base": base, **values}, {1: record})

    found = effects([of("a", 30), of("b", 10), of("c", 20)], ["base"], "mae")
    assert [(e.before, e.after) for e in found] == [("b", "c"), ("c", "a")]
    heard = [of("a", 30, modalities=what) for what in ("audio", "none")]
    assert [(e.before, e.after) for e in effects(heard, ["modalities"], "mae")] == [("none", "audio")]


def test_what_is_said_of_a_change():
    assert (reading(t_interval([-0.2, -0.21])), seeds_named(t_interval([-0.2, -0.21]))) == ("a difference is shown", "")
    few = t_interval([-0.2, 0.1, 0.05])
    assert (reading(few), seeds_named(few)) == ("no difference is shown", str(seeds_to_tell(few)))
    assert (reading(t_interval([0.1])), seeds_named(t_interval([0.1]))) == (
        "one seed: nothing can be said",
        "cannot be said",
    )
    assert signed(t_interval([0.1])) == "+0.100"


def test_the_front_is_what_nothing_beats_in_both():
    points = [(3.0, 0.5), (1.0, 0.9), (2.0, 0.9), (2.0, 0.7), (4.0, 0.6), (1.0, 0.95)]
    assert front(points, higher=False) == [1, 3, 0]
    assert front(points, higher=True) == [5]
    for higher in (False, True):
        kept = front(points, higher)
        for i, (cost, quality) in enumerate(points):
            beaten = any(
                c <= cost and (q >= quality if higher else q <= quality) for j, (c, q) in enumerate(points) if j != i
            )
            assert (i in kept) == (not beaten)


def test_a_power_law_is_found_and_needs_positive_values():
    xs = [1e8, 3e8, 5e8, 15e8]
    fit = fit_log(xs, [2 * x**-0.2 for x in xs], power=True)
    assert fit.slope.mean == pytest.approx(-0.2)
    assert fit.at(7e8) == pytest.approx(2 * 7e8**-0.2)
    assert fit_log(xs, [1, 0.5, 0.2, 0], power=True) is None


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
