"""Mirrors ``commands/demo.py`` and ``demo_page.py``: the page in a real browser, as wide as a desktop and a phone."""

from __future__ import annotations

import json
import socket

import pytest

from deepmlf_llm.backbones import load_tokenizer
from deepmlf_llm.commands import cli, demo_page
from deepmlf_llm.inference.clip_view import ClipViewer
from deepmlf_llm.inference.clips import ClipReader
from deepmlf_llm.inference.predictor import SentimentPredictor
from deepmlf_llm.media.extract import Extractor
from deepmlf_llm.media.recipe import AudioSettings, RecipeSettings, VisionSettings
from deepmlf_llm.tasks.registry import task_of
from tests.browser import PROGRAM, Browser
from tests.inference.test_clips import small_model
from tests.media.clips import Hears, grey, tone, write_clip

pytest.importorskip("av", reason="needs PyAV")


def test_without_gradio_the_pip_line_is_told(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    assert cli.main(["demo", "--adapter", "nowhere"]) == 2
    assert "pip install 'deepmlf_llm[demo]'" in capsys.readouterr().err
    assert cli.main(["demo", "--adapter", "nowhere", "--example", "none.mp4"]) == 2
    assert "--example none.mp4: no such file" in capsys.readouterr().err


def test_the_page_says_how_far_its_model_is_off(tmp_path):
    def said(dataset: str, **metrics: dict[str, float]) -> str:
        (tmp_path / "result.json").write_text(json.dumps({"metrics": metrics}))
        return demo_page._error_of(tmp_path / "adapter", task_of(dataset, None))

    ranged = "On validation clips its mean absolute error was 0.41, on a scale from -1 to 1."
    both = {"test": {"mae": 0.731}, "validation": {"mae": 0.5}}
    assert said("mosi", **both) == "On test clips its mean absolute error was 0.73, on a scale from -3 to 3."
    assert said("sims", validation={"mae": 0.41}) == ranged
    assert "not written" in demo_page._error_of(None, task_of("mosi", None))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Address of the page, and a clip."""
    pytest.importorskip("gradio", reason="needs Gradio: pip install 'deepmlf_llm[demo]'")
    clip = write_clip(tmp_path_factory.mktemp("page") / "talk.mp4", 2.0, tone(2.0), grey(), video="libx264")
    settings = RecipeSettings(AudioSettings("prosody"), VisionSettings("outline"))
    predictor = SentimentPredictor(small_model(Extractor(settings).facts()), load_tokenizer("tiny-llama"))
    viewer = ClipViewer(ClipReader(predictor, transcriber=Hears("well then")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = demo_page.build_page(viewer, clip)
    demo_page.serve(page, port, block=False)
    yield f"http://127.0.0.1:{port}", clip
    page.close()


@pytest.mark.skipif(PROGRAM is None, reason="needs chromium (Debian: apt-get install chromium)")
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_a_clip_is_uploaded_and_its_curve_drawn(served, tmp_path, width):
    address, clip = served
    browser = Browser(tmp_path / "profile", width)
    try:
        browser.open(address)
        browser.wait("document.querySelector('#clip input[type=file]')")
        browser.upload("#clip input[type=file]", clip)
        browser.wait("document.querySelector('#clip video')")
        browser.run("document.querySelector('#analyse').click()")
        browser.wait("document.querySelector('#curve svg.curve')")
        browser.wait("[...document.querySelectorAll('#strip img')].filter(e => e.naturalWidth).length === 8")
        browser.picture(tmp_path / f"page_{width}.png")
        assert "well then" in browser.run("document.querySelector('#transcript').innerText")
        box = browser.run(
            "(r => [r.left, r.right, r.height])(document.querySelector('svg.curve').getBoundingClientRect())"
        )
        assert box[0] >= 0
        assert box[1] <= width
        assert box[2] > 80
        wide = "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
        named = f"{wide}.map(e => e.tagName + '#' + e.id + '.' + e.className).slice(0, 9)"
        assert browser.run("document.documentElement.scrollWidth") <= width, browser.run(named)
        browser.run("[...document.querySelectorAll('input[type=checkbox]')][0].click()")  # leave the words out
        browser.wait("document.querySelector('#headline').innerText.includes('Read: audio, vision.')")
        assert "well then" not in browser.run("document.querySelector('#transcript').innerText")
        assert browser.errors == []
    finally:
        browser.close()
