"""The page of ``deepmlf demo``, in Gradio: what is shown comes from :mod:`deepmlf_llm.inference.clip_view`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepmlf_llm.errors import DeepMLFError
from deepmlf_llm.extras import require
from deepmlf_llm.inference.clip_view import ClipViewer
from deepmlf_llm.reading import read_json

LOOPBACK = "127.0.0.1"

CSS = """
.gradio-container { max-width: 1080px !important; margin: 0 auto !important; }
.headline { font-size: 1.05rem; } .headline strong { font-size: 1.6rem; margin-right: .5rem; }
svg.curve { width: 100%; height: auto; display: block; background: white; border-radius: 6px; }
ol.rows { list-style: none; padding: 0; margin: .5rem 0; }
ol.rows li { border-left: 6px solid; padding: .3rem .6rem; margin: .3rem 0; overflow-wrap: anywhere; }
#strip figure { display: inline-block; margin: 0 .4rem .4rem 0; text-align: center; font-size: .85rem; }
.time { opacity: .75; margin-right: .4rem; white-space: nowrap; } .note { opacity: .85; font-size: .92rem; }
"""

ABOUT = """# Polarity of a clip, over time
A clip goes in, a curve comes out: what the words, the voice and the face say together, and what each says alone."""

CONSENT = """**Before you trust it.** {error} It guesses what is expressed, never what is felt, and it is often wrong;
who was not in its training data is read worse. Take clips of people only with their consent, and decide nothing about
anyone by it. The clip stays on this machine."""


def build_page(viewer: ClipViewer, example: Path | None = None, adapter: Path | None = None) -> Any:
    """The page, not yet served.

    Raises:
        MissingPackageError: Gradio is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    gradio = require("gradio", "the page of `deepmlf demo`")
    work = _Work(gradio, viewer)
    stages = gradio.Progress()  # Gradio finds it among the defaults

    def analyse(
        clip: str | None, sound: str | None, text: str, kept: list[str], progress: Any = stages
    ) -> tuple[Any, ...]:
        return work.analyse(clip or sound, text, kept, progress)

    def show(record: Any, clip: str | None, sound: str | None, kept: list[str]) -> tuple[str, ...]:
        return work.show(record, clip or sound, kept)

    with gradio.Blocks(title="Polarity of a clip, over time", analytics_enabled=False) as page:
        gradio.Markdown(ABOUT)
        record = gradio.State(None)
        with gradio.Row():
            with gradio.Column(scale=2, min_width=280):
                given, run = _inputs(gradio, viewer, example)
            with gradio.Column(scale=3, min_width=280):
                shown = [gradio.HTML(elem_id=name) for name in ("headline", "curve", "transcript")]
        strip = gradio.HTML(elem_id="strip")
        shown.append(gradio.Markdown(elem_id="timing"))
        gradio.Markdown(CONSENT.format(error=_error_of(adapter, viewer.reader.predictor.task)))
        run.click(analyse, given, [record, *shown, strip], api_name="analyse", concurrency_limit=1)
        clip, sound, _, kept = given
        kept.change(show, [record, clip, sound, kept], shown, api_visibility="private", concurrency_limit=1)
    return page


def _inputs(gradio: Any, viewer: ClipViewer, example: Path | None) -> tuple[list[Any], Any]:
    """Clip, sound, text and what is kept; and the button that starts."""
    clip = gradio.Video(label="Clip (two minutes at most)", sources=["upload", "webcam"], elem_id="clip")
    with gradio.Accordion("Sound alone", open=False):
        sound = gradio.Audio(label="Recording", sources=["upload", "microphone"], type="filepath")
    text = gradio.Textbox(label="Its words, if you know them", placeholder="otherwise they are heard from the clip")
    kept = gradio.CheckboxGroup(viewer.modalities, value=viewer.modalities, label="What the model may know")
    run = gradio.Button("Analyse", variant="primary", elem_id="analyse")
    if example is not None:
        take = gradio.Button("Take the example clip", elem_id="example")
        take.click(lambda: _copied(example), None, clip, api_name="example")
    return [clip, sound, text, kept], run


class _Work:
    """What the page's buttons do. Errors that are the user's come in plain words, others keep their traceback."""

    def __init__(self, gradio: Any, viewer: ClipViewer) -> None:
        self.gradio, self.viewer = gradio, viewer

    def analyse(self, path: str | None, text: str, kept: list[str], progress: Any) -> tuple[Any, ...]:
        """Reads a clip: its record, what is shown of it, and the pictures that the model looks at."""
        if not path:
            raise self.gradio.Error("no clip yet: upload one, record one, or take the example", print_exception=False)
        with self._in_plain_words():
            progress(0.1, desc="reading the clip")
            record = self.viewer.open(path, text or "")
            progress(0.8, desc="asking the model")
            return (record, *self._shown(record, path, kept), self.viewer.strip(path))

    def show(self, record: Any, path: str | None, kept: list[str]) -> tuple[str, ...]:
        """The same clip with other modalities left out."""
        if record is None or not path:
            return "", "", "", ""
        with self._in_plain_words():
            return self._shown(record, path, kept)

    def _shown(self, record: Any, path: str, kept: list[str]) -> tuple[str, ...]:
        left_out = [name for name in self.viewer.modalities if name not in kept]
        view = self.viewer.view(record, Path(path).name, left_out)
        return view.headline, view.curve, view.transcript, view.timing

    @contextmanager
    def _in_plain_words(self) -> Iterator[None]:
        try:
            yield
        except DeepMLFError as error:
            raise self.gradio.Error(str(error), duration=None, print_exception=False) from None


def serve(page: Any, port: int, block: bool = True) -> Any:
    """Serves the page on this machine alone; returns what Gradio's ``launch`` does."""
    print(f"the page: http://{LOOPBACK}:{port} (ends with Ctrl-C)", flush=True)
    return page.queue(default_concurrency_limit=1, max_size=8).launch(
        server_name=LOOPBACK,
        server_port=port,
        share=False,
        css=CSS,
        quiet=True,
        show_error=True,
        prevent_thread_lock=not block,
        footer_links=[],
    )


def _copied(example: Path) -> str:
    """The example in a place that Gradio may serve."""
    import tempfile

    place = Path(tempfile.mkdtemp(prefix="deepmlf_example_")) / example.name
    shutil.copy(example, place)
    return str(place)


def _error_of(adapter: Path | None, task: Any) -> str:
    """What is known of the model's error: from the result of its run, which lies beside the adapter."""
    file = (adapter or Path()).parent / "result.json"
    found = read_json(file) if adapter is not None and file.is_file() else {}
    for split in ("test", "validation"):
        metrics = found.get("metrics", {}).get(split, {}) if isinstance(found, dict) else {}
        if isinstance(metrics, dict) and isinstance(metrics.get("mae"), (int, float)):
            scale = f"on a scale from {task.low:g} to {task.high:g}"
            return f"On {split} clips its mean absolute error was {metrics['mae']:.2f}, {scale}."
    return "How far this model is off is not written beside it."
