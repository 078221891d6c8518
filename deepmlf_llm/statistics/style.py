"""How plots look: colours that colour-blind readers tell apart (Okabe and Ito), shapes that print without colour."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deepmlf_llm.extras import require

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")
WIDTH, HEIGHT = 5.0, 3.5  # inches; read at a phone's width too

_SETTINGS = {
    "text.parse_math": False,  # a dollar in a name is a dollar
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 3.2,  # room for dashes beside the marker
    "lines.markersize": 6,
    "svg.fonttype": "none",  # text stays text: read aloud, searched, and a third fewer bytes
    "svg.hashsalt": "deepmlf_llm",  # the same file for the same numbers
    "figure.facecolor": "white",
}


@contextmanager
def figure(width: float = WIDTH, height: float = HEIGHT, rows: int = 1) -> Iterator[tuple[Any, list[Any]]]:
    """A figure and its axes, ``rows`` above each other; drawn without a display."""
    matplotlib = require("matplotlib", "a plot")
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS):
        drawn = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(drawn)
        yield drawn, list(drawn.subplots(rows, 1, squeeze=False)[:, 0])


def svg(drawn: Any) -> bytes:
    """The figure as SVG, the same bytes for the same content. To be called inside :func:`figure`."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def legend_below(drawn: Any, handles: list[Any], columns: int) -> None:
    """A legend under the axes, where no point can hide behind it."""
    if handles:
        drawn.legend(handles=handles, loc="outside lower left", ncols=columns)
