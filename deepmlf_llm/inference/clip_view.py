"""What the page of ``deepmlf demo`` shows of a clip, without the page: text and pictures, as HTML and arrays."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from deepmlf_llm.errors import DataError
from deepmlf_llm.extras import installed, require
from deepmlf_llm.inference.clip_files import CURVES, colour, curves
from deepmlf_llm.inference.clips import ClipReader, ClipResult, ClipRow
from deepmlf_llm.inference.predictions import Prediction
from deepmlf_llm.media.decode import frames, probe
from deepmlf_llm.media.extract import NONE, ClipRecord
from deepmlf_llm.media.faces import FaceTrack
from deepmlf_llm.media.seeing import resized
from deepmlf_llm.media.status import TOO_LONG, ClipError

TEXT = "text"
LONGEST = 120.0
_STRIP, _SIDE = 8, 96  # pictures of the face strip, pixels


@dataclass(frozen=True)
class View:
    """What is shown: what is said of the whole clip, the curves, the transcript (HTML), and how long it took."""

    headline: str
    curve: str
    transcript: str
    timing: str


@dataclass
class ClipViewer:
    """Reads a clip once, and shows it with and without each of its modalities.

    Attributes:
        reader: of the model.
        longest: s; a longer clip is refused.
    """

    reader: ClipReader
    longest: float = LONGEST

    @property
    def modalities(self) -> list[str]:
        """What can be left out."""
        return [TEXT, *self.reader.predictor.config.modalities]

    def open(self, path: Path | str, text: str = "") -> ClipRecord:
        """Words and features of a clip.

        Raises:
            ClipError: the file gives none, or is too long for a page.
        """
        length = probe(path).duration
        if length > self.longest:
            raise ClipError(
                TOO_LONG,
                f"{Path(path).name} lasts {length:.0f} s: this page takes {self.longest:g} s at most; "
                "`deepmlf predict --video` takes any length",
            )
        return self.reader.extractor.extract(path, text)

    def view(self, record: ClipRecord, clip: str, leave_out: Collection[str] = ()) -> View:
        """What the model says, with what it may not know left out.

        Raises:
            DataError: nothing is left that it could read.
        """
        features = {name: values for name, values in record.features.items() if name not in leave_out}
        kept = replace(record, features=features)
        if TEXT in leave_out:
            bare = [replace(part, text="", words=[]) for part in record.segments]
            kept = replace(kept, text="", text_source=NONE, segments=bare)
        if not features and not kept.text:
            raise DataError("everything that this clip has is left out: switch something on")
        result = self.reader.predict_record(kept, clip)
        task = self.reader.predictor.task
        drawn = ""
        if installed("matplotlib") and isinstance(result.whole.prediction, Prediction):
            drawn = curves(result, task).decode("utf-8")
            drawn = drawn[drawn.index("<svg") :].replace("<svg ", '<svg class="curve" role="img" ', 1)
        return View(_headline(result), drawn, _transcript(result, task, record), _timing(record))

    def strip(self, path: Path | str) -> str:
        """Pictures of the square that the model looks at, with their times, as HTML; empty without pictures."""
        figures = [
            f'<figure><img width="{_SIDE}" height="{_SIDE}" alt="{time}" src="data:image/png;base64,{_png(square)}">'
            f"<figcaption>{time}</figcaption></figure>"
            for square, time in self.squares(path)
        ]
        return f"<p class='note'>What the model looks at:</p>{''.join(figures)}" if figures else ""

    def squares(self, path: Path | str) -> list[tuple[np.ndarray, str]]:
        """Those pictures [side x side x 3], each with its time."""
        probed = probe(path)
        vision = self.reader.extractor.settings.vision
        if probed.video_end is None or vision is None:
            return []
        track = FaceTrack(self.reader.extractor.detector, vision.margin)
        fps = min(_STRIP / max(probed.duration, 0.1), 25.0)
        shown = []
        for time, picture in frames(probed, fps):
            square, found = track.cut(picture)
            shown.append((resized(square, _SIDE), f"{time:.1f} s" + ("" if found else ": no face")))
        return shown[:_STRIP]


def _png(picture: np.ndarray) -> str:
    """A picture as PNG, in base 64."""
    buffer = io.BytesIO()
    require("PIL.Image", "showing pictures").fromarray(picture).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _headline(result: ClipResult) -> str:
    said = result.whole.prediction
    if not isinstance(said, Prediction):
        shares = ", ".join(f"{html.escape(name)} {share:.0%}" for name, share in said.probabilities.items())
        return f"<p class='headline'><strong>{_label(result.whole)}</strong> <span>{shares}</span></p>"
    parts = [f"{told} {value:+.2f}" for name, told in CURVES.items() if (value := getattr(said, name)) is not None]
    label = f" {html.escape(said.label)}" if said.label else ""
    heard = ", ".join(result.whole.present)
    return (
        f"<p class='headline'><strong>{said.polarity:+.2f}{label}</strong> "
        f"<span>{'; '.join(parts)}. Read: {html.escape(heard)}.</span></p>"
    )


def _transcript(result: ClipResult, task: object, record: ClipRecord) -> str:
    """The rows, each in the colour of its polarity, with the number beside it: colour is never alone."""
    lines = []
    for row in result.rows:
        text = html.escape(" ".join(row.text.split())) or "<em>no words</em>"
        if isinstance(row.prediction, Prediction):
            sign, tint = f"{row.prediction.polarity:+.2f}", colour(row.prediction.polarity, task)
        else:
            sign, tint = html.escape(_label(row)), "#888888"
        lines.append(
            f"<li style='border-left-color:{tint}'><span class='time'>{row.start:.1f} to {row.end:.1f} s</span> "
            f"<strong>{sign}</strong> {text}</li>"
        )
    source = {"given": "as given", "heard": "as heard by the speech recogniser"}.get(record.text_source, "no words")
    notes = "".join(f"<p class='note'>{html.escape(note)}</p>" for note in result.notes)
    return f"<p class='note'>Words {source}.</p><ol class='rows'>{''.join(lines)}</ol>{notes}"


def _label(row: ClipRow) -> str:
    said = row.prediction.label
    return ", ".join(said) if isinstance(said, list) else str(said)


def _timing(record: ClipRecord) -> str:
    spent = sum(record.seconds.values())
    stages = ", ".join(
        f"{name.replace('_', ' ')} {took:.1f} s" for name, took in record.seconds.items() if took >= 0.05
    )
    return f"{record.status}: {record.duration:.1f} s of clip read in {spent:.1f} s" + (
        f" ({stages})" if stages else ""
    )
