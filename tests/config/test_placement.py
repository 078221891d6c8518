"""Placements of MM Blocks: every form, and what it means in LMs of any depth."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepmlf_llm.config.placement import parse_fusion_layers, resolve_fusion_layers
from deepmlf_llm.errors import ConfigError


@given(st.integers(1, 60), st.data())
def test_placements_resolve_to_distinct_layers(layers, data):
    count = data.draw(st.integers(1, layers))
    even = resolve_fusion_layers(f"even:{count}", layers)
    assert len(even) == len(set(even)) == count
    assert even == sorted(even)
    assert even[-1] == layers - 1
    gaps = [b - a for a, b in zip([-1, *even], even, strict=False)]
    assert max(gaps) - min(gaps) <= 1
    assert resolve_fusion_layers(f"last:{count}", layers) == list(range(layers))[-count:]
    assert resolve_fusion_layers(f"from:{count - 1}", layers) == list(range(layers))[count - 1 :]


def test_the_published_placements():
    assert resolve_fusion_layers("from:5", 12) == [5, 6, 7, 8, 9, 10, 11]
    assert resolve_fusion_layers("even:5", 36) == [7, 14, 21, 28, 35]
    assert parse_fusion_layers("11,14, 17,20,23") == [11, 14, 17, 20, 23]
    assert parse_fusion_layers((3, 1)) == [1, 3]
    assert parse_fusion_layers(4) == [4]


@pytest.mark.parametrize(
    "spec", ["last:0", "even:", "even:x", "middle:3", [], [1, 1], [-1], [True], [1.5], None, "1,,x"]
)
def test_other_placements_are_refused(spec):
    with pytest.raises(ConfigError, match="fusion_layers="):
        parse_fusion_layers(spec)


@pytest.mark.parametrize("spec", ["last:13", "even:13", "from:12", [0, 12]])
def test_placements_outside_the_lm_are_refused(spec):
    with pytest.raises(ConfigError, match="fusion_layers="):
        resolve_fusion_layers(spec, 12)


@pytest.mark.parametrize(
    ("spec", "layers", "fits"),
    [
        ("even:7", 4, "'even:4' would fit"),
        ("last:9", 6, "'last:6' would fit"),
        ("from:4", 4, "'from:3' would fit"),
        ([1, 3, 5], 4, r"\[1, 3\] or 'last:3' would fit"),
        ([30, 31], 4, "'last:2' would fit"),
    ],
)
def test_an_lm_with_fewer_layers_gets_a_placement_that_fits(spec, layers, fits):
    with pytest.raises(ConfigError, match=fits):
        resolve_fusion_layers(spec, layers)


@pytest.mark.parametrize(
    "spec", ["last:²", f"even:{'9' * 5000}", "from:-1", "٣", [10**5000], float("nan"), {}, {"a": 1}]
)
def test_digits_of_other_scripts_and_endless_numbers_are_refused(spec):
    with pytest.raises(ConfigError, match="fusion_layers="):
        parse_fusion_layers(spec)
