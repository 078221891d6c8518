"""The report in a real browser, at the width of a desktop and of a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# A frame of the device's width holds the page; when all of it has loaded, what is wrong is written into the outer page.
CHECK = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe id="frame" style="width:{width}px;height:1000px;border:0" srcdoc="{page}"></iframe>
<pre id="found"></pre>
<script>
const frame = document.getElementById("frame");
frame.addEventListener("load", () => {{
  const page = frame.contentDocument, wrong = [];
  const images = [...page.images];
  for (const image of images)
    if (!image.complete || !image.naturalWidth || image.getBoundingClientRect().width < 250)
      wrong.push("plot not shown: " + image.alt);
  const scrolls = element => {{
    for (let e = element; e; e = e.parentElement)
      if (["auto", "scroll"].includes(frame.contentWindow.getComputedStyle(e).overflowX)) return true;
    return false;
  }};
  for (const element of page.querySelectorAll("main *")) {{
    const style = frame.contentWindow.getComputedStyle(element), box = element.getBoundingClientRect();
    if (element.scrollWidth > element.clientWidth + 1 && element.clientWidth &&
        ["hidden", "clip"].includes(style.overflowX)) wrong.push("cut: " + element.tagName + " " + element.textContent);
    if (box.right > {width} + 1 && !scrolls(element)) wrong.push("off the page: " + element.tagName);
    if (element.children.length === 0 && element.textContent.trim() && parseFloat(style.fontSize) < 11)
      wrong.push("too small to read: " + element.textContent);
  }}
  if (page.documentElement.scrollWidth > {width}) wrong.push("the page itself scrolls sideways");
  document.getElementById("found").textContent =
    JSON.stringify({{images: images.length, width: frame.contentWindow.innerWidth, wrong: [...new Set(wrong)]}});
}});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="needs chromium (Debian: apt-get install chromium)")
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_every_plot_is_loaded_and_no_text_is_cut(reported_study, tmp_path, width):
    page = (reported_study / "report.html").read_text().replace("<details>", "<details open>")
    outer = tmp_path / "outer.html"
    outer.write_text(CHECK.format(width=width, page=html.escape(page)))
    found = look(outer, tmp_path)
    assert found == {"images": 8, "width": width, "wrong": []}


@pytest.mark.skipif(BROWSER is None, reason="needs chromium (Debian: apt-get install chromium)")
def test_the_check_itself_finds_faults(tmp_path):
    page = (
        "<main><img alt='none' src='data:image/svg+xml;base64,AAAA'><p style='overflow:hidden;width:50px;"
        f"white-space:nowrap'>{'word ' * 30}</p><div style='width:2000px'>wide</div></main>"
    )
    outer = tmp_path / "outer.html"
    outer.write_text(CHECK.format(width=390, page=html.escape(page)))
    wrong = " ".join(look(outer, tmp_path)["wrong"])
    for part in ("plot not shown: none", "cut: P", "off the page: DIV", "the page itself scrolls sideways"):
        assert part in wrong


def look(page, tmp_path) -> dict:
    """What the check wrote."""
    switches = "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-dev-shm-usage"
    switches += " --window-size=1400,1000 --virtual-time-budget=20000"
    done = subprocess.run(
        [BROWSER, *switches.split(), f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(html.unescape(re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)[1]))
