"""What data and settings bring in stands in a page as itself, for whoever renders it."""

from __future__ import annotations

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deepmlf_llm import markdown

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![x](http://evil.example/x.png)",
    "[x]: http://evil.example",
    "http://evil.example/?a=1&b=2",
    "see www.evil.example",
    "me@evil.example",
    "a | b | c",
    "line\n\n# heading\n\n| a |\n|---|\n",
    "```\nout of the code\n```",
    "`` ` ``",
    "# heading",
    "- list",
    "1. list",
    "2) list",
    "> quote",
    "---",
    "===",
    "&lt;b&gt; &amp; &#60;",
    "**bold** _em_ ~~gone~~ $x^2$",
    "back\\slash \\| \\",
    "\x1b[31mred\x07\u202e",
    "",
    "   ",
]


def rendered(text):
    """What a reader sees of prose, and the tags and addresses in it, by the reference renderer."""
    parser = pytest.importorskip("markdown_it").MarkdownIt("gfm-like", {"html": True, "linkify": False})
    tokens = parser.parse(text)
    inline = [child for token in tokens for child in token.children or []]
    return [token.type for token in tokens], inline


@pytest.mark.parametrize("text", HOSTILE)
def test_prose_is_one_paragraph_of_text(text):
    kinds, inline = rendered(f"before {markdown.plain(text)} after")
    assert kinds == ["paragraph_open", "inline", "paragraph_close"]
    assert {token.type for token in inline} <= {"text", "text_special"}
    assert "".join(token.content for token in inline).split() == f"before {markdown.one_line(text)} after".split()


@pytest.mark.parametrize("text", HOSTILE)
def test_prose_at_the_start_of_a_line(text):
    kinds, inline = rendered(markdown.plain(text))
    assert kinds in (["paragraph_open", "inline", "paragraph_close"], [])
    assert {token.type for token in inline} <= {"text", "text_special"}


@given(st.text(max_size=30))
def test_any_prose_shows_itself(text):
    kinds, inline = rendered(f"x {markdown.plain(text)} y")
    assert kinds == ["paragraph_open", "inline", "paragraph_close"]
    assert "".join(token.content for token in inline).split() == f"x {markdown.one_line(text)} y".split()


@pytest.mark.parametrize("text", HOSTILE)
def test_a_cell_stays_a_cell(text):
    for cell in (markdown.plain(text), markdown.code(text, in_table=True)):
        kinds, _ = rendered(f"| a | b |\n|---|---|\n| {cell} | x |\n")
        assert kinds.count("td_open") == 2
        assert kinds.count("tr_open") == 2


@pytest.mark.parametrize("text", HOSTILE)
def test_code_is_code(text):
    _, inline = rendered(f"before {markdown.code(text)} after")
    kinds = [token.type for token in inline]
    if markdown.one_line(text):
        assert kinds == ["text", "code_inline", "text"]
        assert inline[1].content.strip() == markdown.one_line(text).strip()


@given(st.lists(st.text(alphabet="`~ ab\n\r", max_size=12), max_size=5))
def test_no_line_ends_a_block_of_code(lines):
    kinds, _ = rendered(markdown.fenced(lines) + "\n\nafter")
    assert kinds == ["fence", "paragraph_open", "inline", "paragraph_close"]


@pytest.mark.parametrize(
    "target",
    ["javascript:alert(1)", "//evil.example/x", "http://evil.example", "a) [b](c", 'x" onclick="y', "<x>", "a b"],
)
def test_a_link_leads_beside_the_page_only(target):
    address = markdown.relative(target)
    assert re.fullmatch(r"[\w./%-]*", address)
    assert not address.startswith("/")
    assert ":" not in address
    _, inline = rendered(markdown.link("[x](y)", target))
    assert [token.type for token in inline if token.type == "link_open"] == ["link_open"]


@pytest.mark.parametrize(
    "text", [*HOSTILE, "meta-llama/Llama-3.2-1B", "true", "no", "1.5", "x: y", "a\nlicense: mit", "/a/b c"]
)
def test_a_word_of_the_head_is_read_as_it_was(text):
    assert yaml.safe_load(f"base_model: {markdown.yaml_word(text)}\n") == {"base_model": text}


def test_usual_names_and_numbers_stay_readable():
    usual = ["HuggingFaceTB/SmolLM2-135M", "adapter, merged: 0.5 (5 %)", "-0.5", "+0.1 ± 0.01", "3.11.7", "#1", "1,234"]
    assert [markdown.plain(text) for text in usual] == usual
    assert markdown.yaml_word("meta-llama/Llama-3.2-1B") == "meta-llama/Llama-3.2-1B"


def test_a_table_has_a_line_for_each_row():
    assert markdown.table(["a", "b"], [[1, "x"]]) == "| a | b |\n| --- | --- |\n| 1 | x |"
