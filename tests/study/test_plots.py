"""Mirrors ``deepmlf_llm/study/plots.py`` and ``style.py``."""

from __future__ import annotations

import re
import xml.dom.minidom

from deepmlf_llm.statistics.style import COLOURS
from deepmlf_llm.study.configurations import varied
from deepmlf_llm.study.gate_plots import gates_plot
from deepmlf_llm.study.plots import heads_plot, of_base_models, quality_plot, quantities


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
    assert plot.caption.count("fusion tokens)") == 2  # one slope for each number of tokens


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


def over_lms(found):
    """Four LMs, the text alone and two depths of fusion."""
    configurations = found(layers=(6, 12, 18, 30), blocks=(1, 3, 7), tokens=(4,), failed=0)
    for c in configurations:
        c.values["base"] = f"lm-{c.values['layers']}"
        c.values["modalities"] = "none" if c.values["blocks"] == 3 else "audio"
    sizes = {c.backbone: 1e8 * c.values["layers"] for c in configurations}
    texts = {c.backbone: 0.5 + 0.03 * c.values["layers"] for c in configurations}
    return configurations, of_base_models({"lm_parameters": sizes, "text_quality": texts})


def test_a_fit_says_which_configuration_it_is_of(found):
    configurations, drawn = over_lms(found)
    plot = quality_plot(configurations, drawn["lm_parameters"], varied(configurations), "mae")
    for label in ("1 MM Block, audio", "3 MM Blocks, text alone", "7 MM Blocks, audio"):
        assert f"({label})" in plot.caption
    assert re.search(rb">\d(\.\d+)?B<", plot.svg)
    assert not re.search(rb">\d(\.\d+)?G<", plot.svg)


def test_the_text_alone_is_not_drawn_against_itself(found):
    configurations, drawn = over_lms(found)
    plot = quality_plot(configurations, drawn["text_quality"], varied(configurations), "mae")
    assert "(1 MM Block);" in plot.caption
    assert "(7 MM Blocks)" in plot.caption
    assert "3 MM Blocks" not in plot.caption
    assert b"text alone<" not in plot.svg.replace(b"text alone, same LM", b"")


def test_points_stand_beside_a_count_only(found, monkeypatch):
    from matplotlib.axes import Axes

    drawn_at = set()
    monkeypatch.setattr(Axes, "vlines", lambda self, x, *_, **__: drawn_at.add(x))
    configurations, drawn = over_lms(found)
    quality_plot(configurations, drawn["text_quality"], varied(configurations), "mae")
    assert drawn_at == {0.5 + 0.03 * layers for layers in (6, 12, 18, 30)}
    drawn_at.clear()
    quality_plot(configurations, quantities()["blocks"], varied(configurations), "mae")
    assert not drawn_at <= {1, 3, 7}
