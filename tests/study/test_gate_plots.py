from __future__ import annotations

import re

import pytest

from deepmlf_llm.study.gate_plots import PANELS, gate_curves, gates_plot


def test_gates_start_where_their_kind_does(found):
    (c,) = found(layers=(6,), blocks=(2,), tokens=(4,), seeds=(1,), failed=0)
    curves = gate_curves(c)
    assert sorted(curves) == [(2, "ffw"), (2, "gca"), (5, "ffw"), (5, "gca")]
    assert curves[5, "gca"] == [(0, 0.5), (20, pytest.approx(0.5 + 100 / 9000)), (40, pytest.approx(0.5 + 200 / 9000))]
    c.records[1]["run_info"]["settings"]["gate"] = "tanh"
    assert gate_curves(c)[5, "gca"][0] == (0, 0.0)
    c.records[1]["train_info"]["curve"] = []
    assert gates_plot([c], []) is None


AXES = ["layers", "blocks", "num_fusion_tokens"]


def test_each_backbone_has_its_panel_with_its_own_seeds(found):
    configurations = found(layers=(6, 12, 18, 30), blocks=(2, 6), tokens=(4,), failed=0)
    largest = next(c for c in configurations if c.values["layers"] == 30 and c.values["blocks"] == 6)
    del largest.records[2]
    plot = gates_plot(configurations, AXES)
    titles = b"".join(re.findall(rb">([^<>]*(?:LM layers|MM Blocks|seed)[^<>]*)<", plot.svg)).decode()
    for layers in (6, 12, 18, 30):
        assert f"{layers} LM layers" in titles
    assert titles.replace(" ", "").count("2seeds") == 3
    assert titles.replace(" ", "").count("1seed") == 1
    assert "the same for each backbone" in plot.caption
    assert "seeds that the title counts" in plot.caption


def test_panels_are_of_one_configuration_where_all_have_it(found):
    configurations = found(layers=(6, 12), blocks=(2, 6), tokens=(4,), failed=0)
    few = [c for c in configurations if c.values["layers"] == 6 or c.values["blocks"] == 2]
    plot = gates_plot(few, AXES)
    assert plot.svg.count(b"2 MM Blocks") == 2
    few = [c for c in configurations if (c.values["layers"] == 6) == (c.values["blocks"] == 2)]
    assert "no one is common to all" in gates_plot(few, AXES).caption


def test_a_long_study_says_how_many_it_shows(found):
    depths = range(6, 6 + PANELS + 1)
    plot = gates_plot(found(layers=depths, blocks=(2,), tokens=(4,), seeds=(1,), failed=0), AXES)
    assert plot.caption.endswith(f"The first {PANELS} of {PANELS + 1} backbones.")
