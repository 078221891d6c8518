"""Mirrors ``deepmlf_llm/study/plots.py`` and ``style.py``."""

from __future__ import annotations

import re
import xml.dom.minidom

from deepmlf_llm.statistics.style import COLOURS
from deepmlf_llm.study.configurations import varied
from deepmlf_llm.study.gate_plots import gates_plot
from deepmlf_llm.study.plots import heads_plot, quality_plot, quantities


def test_the_same_results_draw_the_same_bytes(found):
    configurations = found()
    axes = varied(configurations)

    def draw() -> list[bytes]:
        plots = [quality_plot(configurations, quantities()[name], axes, "mae") for name in ("layers", "flops")]
        plots += [gates_plot(configurations, axes), heads_plot(configurations, axes, "mae")]
        return [plot.svg for plot in plots]

    first = draw()
    assert len(first) == 4
    assert draw() == first
    for svg in first:
        assert xml.dom.minidom.parseString(svg).documentElement.tagName == "svg"
        assert b"<dc:date>" not in svg
        assert not re.search(rb"\b20\d\d-\d\d-\d\d\b", svg)
        assert not re.search(rb'(href|src)="(?!#)', svg)  # refers to nothing outside


def test_what_does_not_vary_is_not_drawn(found):
    configurations = found(layers=(6,), failed=0)
    axes = varied(configurations)
    assert quality_plot(configurations, quantities()["layers"], axes, "mae") is None
    assert quality_plot(configurations, quantities()["blocks"], axes, "mae") is not None
    assert quality_plot(configurations, quantities()["blocks"], axes, "f1_non0") is None  # nowhere defined


def test_a_curve_needs_four_places(found):
    configurations = found(layers=(6, 12, 30), blocks=(2,), failed=0)
    plot = quality_plot(configurations, quantities()["layers"], varied(configurations), "mae")
    assert "No curve is fitted: 3 clearly different values of x, a curve needs 4." in plot.caption
    configurations = found(folder="more", layers=(3, 6, 12, 30), blocks=(2,), failed=0)
    plot = quality_plot(configurations, quantities()["layers"], varied(configurations), "mae")
    assert "mae = a + b log10(x)" in plot.caption
    assert plot.caption.count(";") == 2  # one slope for each number of tokens


def test_resumed_cells_have_no_time(found):
    configurations = found(failed=0)
    for c in configurations:
        for record in c.records.values():
            record["train_info"]["seconds"] = None
    assert quality_plot(configurations, quantities()["seconds"], varied(configurations), "mae") is None


def test_colours_differ_in_brightness():
    """Read in grey, neighbouring colours are told apart by shape; none is so pale that print loses it."""
    for colour in COLOURS:
        red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        assert 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.72
    assert len(set(COLOURS)) == len(COLOURS)


def test_a_dollar_in_a_name_is_a_dollar():
    """matplotlib would read what stands between two of them as a formula, and fail on most."""
    from deepmlf_llm.statistics import style

    with style.figure() as (drawn, axes):
        axes[0].set_title("a_$b^$ \\frac{ $$")
        axes[0].set_xlabel("$ $ $\\nothing$")
        assert style.svg(drawn).startswith(b"<?xml")
