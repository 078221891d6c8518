"""Polarity over time as files: JSON, CSV, subtitles coloured by polarity, and a plot with the transcript under it."""

from __future__ import annotations

import csv
import html
import io
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepmlf_llm.errors import ConfigError
from deepmlf_llm.files import write_aside
from deepmlf_llm.inference.clips import ClipResult, ClipRow
from deepmlf_llm.inference.predictions import Prediction
from deepmlf_llm.statistics.style import COLOURS, HEIGHT, LINES, MARKERS, WIDTH, figure, legend_below
from deepmlf_llm.tasks.classification import ClassificationTask
from deepmlf_llm.tasks.registry import Task

CURVES = {"polarity": "fused", "text_polarity": "text alone", "av_polarity": "sound and sight alone"}
NEGATIVE, NEUTRAL, POSITIVE = (213, 94, 0), (136, 136, 136), (0, 114, 178)  # told apart by the colour-blind too
MOST_ROWS = 60  # of a transcript under a plot
_LETTERS, _WIDE = 96, 7.0  # of a line there, and inches of the plot over it
PLOTS = (".svg", ".png")


def write_json(path: Path, result: ClipResult) -> None:
    """All that is known of the clip."""
    write_aside(path, json.dumps(result.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: Path, result: ClipResult) -> None:
    """A line for each row; that of the whole clip comes first."""
    lines = [("whole", result.whole), *((str(k + 1), row) for k, row in enumerate(result.rows))]
    told = [{"row": name, **_flat(row)} for name, row in lines]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for line in told for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(told)
    write_aside(path, out.getvalue())


def write_srt(path: Path, result: ClipResult, task: Task) -> None:
    """Subtitles: each span's words, coloured from negative to positive; of classes the class stands before them."""
    parts = []
    for number, row in enumerate(result.rows, start=1):
        text = html.escape(" ".join(row.text.split()), quote=False) or "..."
        if isinstance(row.prediction, Prediction):
            sign = f"{row.prediction.polarity:+.1f}"
            text = f'<font color="{colour(row.prediction.polarity, task)}">{text} ({sign})</font>'
        else:
            text = f"[{_label(row)}] {text}"
        parts.append(f"{number}\n{_clock(row.start)} --> {_clock(row.end)}\n{text}\n")
    write_aside(path, "\n".join(parts))


def write_plot(path: Path, result: ClipResult, task: Task) -> None:
    """The curves over time with the transcript below, as SVG or PNG.

    Raises:
        ConfigError: another ending, or labels that are classes.
        MissingPackageError: matplotlib is not installed.
    """
    if path.suffix not in PLOTS:
        raise ConfigError(f"plot {path.name}: expected a name that ends with {' or '.join(PLOTS)}")
    write_aside(path, curves(result, task, path.suffix.removeprefix("."), _transcript(result.rows)))


def curves(result: ClipResult, task: Task, form: str = "svg", below: Sequence[str] = ()) -> bytes:
    """Polarity over time, fused, of the text alone, of sound and sight alone; the same bytes for the same result.

    Args:
        result: of a clip.
        task: what its labels mean.
        form: "svg" or "png".
        below: lines under the plot.

    Raises:
        ConfigError: labels that are classes have no curve.
        MissingPackageError: matplotlib is not installed.
    """
    if isinstance(task, ClassificationTask):
        raise ConfigError("plot: this model predicts classes, which have no curve; use --csv or --json")
    looks: dict[str, Any] = {"svg": {"metadata": {"Date": None, "Creator": None}}, "png": {"dpi": 150}}
    with figure(_WIDE if below else WIDTH, HEIGHT) as (drawn, (axes,)):
        _draw(axes, result, task)
        legend_below(drawn, axes.get_legend_handles_labels()[0], 3 if below else 2)
        drawn.text(0.02, -0.01, "\n".join(below), va="top", ha="left", fontsize=8, family="monospace")
        buffer = io.BytesIO()
        drawn.savefig(buffer, format=form, bbox_inches="tight", **looks[form])
    return buffer.getvalue()


def colour(polarity: float, task: Any) -> str:
    """Between those of negative, neutral and positive, as ``#rrggbb``."""
    middle = (task.low + task.high) / 2
    share = max(min((polarity - middle) / (task.high - middle), 1.0), -1.0)
    end = POSITIVE if share >= 0 else NEGATIVE
    mixed = (round(a + (b - a) * abs(share)) for a, b in zip(NEUTRAL, end, strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def points(rows: list[ClipRow], name: str) -> list[tuple[float, float, float]]:
    """Start, end (s) and value of each row that has one."""
    found = [(row.start, row.end, getattr(row.prediction, name)) for row in rows]
    return [point for point in found if point[2] is not None]


def _draw(axes: Any, result: ClipResult, task: Any) -> None:
    for place, (name, label) in enumerate(CURVES.items()):
        spans = points(result.rows, name)
        if not spans:
            continue
        x = [time for start, end, _ in spans for time in (start, (start + end) / 2, end)]
        y = [value for _, _, value in spans for _ in range(3)]
        look = {"color": COLOURS[place], "linestyle": LINES[place], "label": label}
        axes.plot(x, y, linewidth=2.0 if not place else 1.2, **look)
        middles = [((start + end) / 2, value) for start, end, value in spans]
        axes.plot(*zip(*middles, strict=True), MARKERS[place], color=COLOURS[place], markersize=4)
    axes.axhline((task.low + task.high) / 2, color="#888888", linewidth=0.8)
    axes.set_ylim(task.low, task.high)
    axes.set_xlim(0, max(result.record.duration, 0.1))
    axes.set_xlabel("time (s)")
    axes.set_ylabel("polarity")
    axes.set_title(f"{result.clip}: {result.whole.prediction.polarity:+.2f} as a whole")  # type: ignore[union-attr]


def _transcript(rows: list[ClipRow]) -> list[str]:
    """A line or more for each row: time, polarity, words."""
    lines: list[str] = []
    for row in rows[:MOST_ROWS]:
        said = row.prediction.polarity if isinstance(row.prediction, Prediction) else 0.0
        head = f"{row.start:7.1f} s {said:+5.2f}  "
        text = " ".join(row.text.split()) or "(no words)"
        lines += textwrap.wrap(text, _LETTERS, initial_indent=head, subsequent_indent=" " * len(head))
    if len(rows) > MOST_ROWS:
        lines.append(f"... and {len(rows) - MOST_ROWS} more rows")
    return lines


def _flat(row: ClipRow) -> dict[str, Any]:
    """A row as cells."""
    told = row.to_dict()
    told["present"] = " ".join(row.present)
    for name in [key for key, value in told.items() if isinstance(value, dict)]:
        told |= {f"{name}.{key}": value for key, value in told.pop(name).items()}
    if isinstance(told.get("label"), list):
        told["label"] = " ".join(told["label"])
    return told


def _label(row: ClipRow) -> str:
    said = row.prediction.label
    return ", ".join(said) if isinstance(said, list) else str(said)


def _clock(seconds: float) -> str:
    """``hh:mm:ss,mmm``."""
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d},{rest % 1000:03d}"
