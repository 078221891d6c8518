"""What settings bring into a card stands there as itself."""

from __future__ import annotations

import pytest
import yaml
from markdown_it import MarkdownIt

from deepmlf_llm.adapters.card import adapter_card, merged_card
from deepmlf_llm.config.method import DeepMLFConfig


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_a_card_says_what_settings_bring_in_and_nothing_more(kind):
    """Names and templates come from whoever made the base, the data and the settings."""
    evil = "x`|y\n# heading <script>alert(1)</script> [a](javascript:b)\nlicense: mit"
    config = DeepMLFConfig(
        fusion_layers=[1], modalities={"audio": {"dim": 5, "features": {"kind": evil, "source": evil}}}
    )
    config.base_model_name_or_path = evil
    config.dataset = evil
    text = (
        adapter_card(config, {})
        if kind == "adapter"
        else merged_card(config, "fusion", {evil: {"largest": 1.0, "mean": 0.5}})
    )
    head, _, body = text.removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(head)["base_model"] == evil
    tokens = MarkdownIt("gfm-like", {"html": True, "linkify": False}).parse(body)
    inline = [child for token in tokens for child in token.children or []]
    assert [token.tag for token in tokens if token.type == "heading_open"] == ["h1"]
    assert not [
        token for token in [*tokens, *inline] if token.type in ("html_block", "html_inline", "link_open", "image")
    ]
    assert len([token for token in tokens if token.type == "td_open"]) == (5 if kind == "adapter" else 8)
