from __future__ import annotations

import pytest

from deepmlf_llm.study.gate_plots import gate_curves, gates_plot


def test_gates_start_where_their_kind_does(found):
    (c,) = found(layers=(6,), blocks=(2,), tokens=(4,), seeds=(1,), failed=0)
    curves = gate_curves(c)
    assert sorted(curves) == [(2, "ffw"), (2, "gca"), (5, "ffw"), (5, "gca")]
    assert curves[5, "gca"] == [(0, 0.5), (20, pytest.approx(0.5 + 100 / 9000)), (40, pytest.approx(0.5 + 200 / 9000))]
    c.records[1]["run_info"]["settings"]["gate"] = "tanh"
    assert gate_curves(c)[5, "gca"][0] == (0, 0.0)
    c.records[1]["train_info"]["curve"] = []
    assert gates_plot([c], []) is None
