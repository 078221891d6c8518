"""Texts that are met for the first time, without a graph: one pass, and what it writes down is what a cache reads."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from deepmlf_llm.backbones.text_cache import texts_of
from tests.families import LAYERS, LENGTHS, POLARITIES, outputs, tiny_batch, tiny_family, tiny_model

CLOSE = {"rtol": 1e-4, "atol": 1e-5, "check_device": False}  # what one pass keeps lies on the CPU
DESIGNS = [{}, {"fusion_entry": "first_block"}, {"freeze_fusion_tokens": True}, {"truncate_lm": True}]


def make(family="llama", **settings):
    return tiny_model(tiny_family(family), **{"fusion_layers": [1, 2], **settings}).eval()


def counted(model):
    """Layer -> positions of each time that it runs."""
    runs = {index: [] for index in range(LAYERS)}
    for index, layer in enumerate(model.fused_decoder.decoder.layers):
        layer.register_forward_hook(lambda m, a, out, index=index: runs[index].append(out.shape[1]), prepend=True)
    return runs


@pytest.mark.parametrize("settings", DESIGNS, ids=str)
@pytest.mark.parametrize("scope", ["joint", "fusion"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_one_pass_says_what_the_passes_apart_say_and_keeps_what_they_keep(family, scope, settings):
    model, batch = make(family, ffw_scope=scope, **settings), tiny_batch()
    expected = model(**batch)  # with a graph: the text apart
    texts = texts_of(batch["input_ids"], batch["attention_mask"])
    model.enable_text_cache("memory", fusion_tokens=True)
    model.build_text_cache(texts)
    apart, tokens = model.text_cache, outputs(model, **batch) and model.fused_decoder.token_cache

    model.enable_text_cache("memory", fusion_tokens=True)
    runs = counted(model)
    found = outputs(model, **batch)
    n, count = model.active_stack.num_tokens, 3 if settings.get("truncate_lm") else LAYERS
    below = 2 if settings.get("fusion_entry") else 0  # layers that tokens do not run through
    assert runs == {i: [max(LENGTHS) + (0 if i < below else n)] if i < count else [] for i in range(LAYERS)}
    for name in POLARITIES:
        assert_close(found[name], expected[name], **CLOSE)
    assert len(model.text_cache) == len(apart) == 3
    for text in texts:
        one, other = model.text_cache.store[text], apart.store[text]
        assert_close(one.keys_values, other.keys_values, **CLOSE)
        assert_close(one.states, other.states, **CLOSE)
        assert one.nbytes == other.nbytes
    assert model.fused_decoder.token_cache.states.keys() == tokens.states.keys()
    for text, state in tokens.states.items():
        assert_close(model.fused_decoder.token_cache.states[text], state, **CLOSE)
    again = outputs(model, **batch)
    assert runs[0] == [max(LENGTHS) + (0 if below else n)], "what is kept is read again"
    for name in POLARITIES:
        assert_close(again[name], expected[name], **CLOSE)


@pytest.mark.parametrize("settings", [{}, {"token_topology": "segregated"}, {"readout_layers": "mix"}], ids=str)
@pytest.mark.parametrize("scope", ["joint", "fusion"])
def test_nothing_kept_is_one_pass_too(scope, settings):
    model, batch = make(ffw_scope=scope, **settings), tiny_batch()
    expected = model(**batch)
    runs = counted(model)
    found = outputs(model, **batch)
    assert runs == {index: [max(LENGTHS) + model.active_stack.num_tokens] for index in range(LAYERS)}
    for name in POLARITIES:
        assert_close(found[name], expected[name], **CLOSE)


def shown_twice(batch):
    return {name: x[[0, 0, 2]] for name, x in batch.items()}


@pytest.mark.parametrize(
    "why", ["graph", "known", "twice", "autocast", "disk", pytest.param("narrow", marks=pytest.mark.cpu), "noted"]
)
def test_the_text_is_read_apart_where_that_spares_or_changes_something(why, tmp_path, monkeypatch, device):
    model = make(ffw_scope="fusion", **({"readout_layers": "mix"} if why == "noted" else {}))
    batch = shown_twice(tiny_batch()) if why == "twice" else tiny_batch()
    monkeypatch.setattr("deepmlf_llm.backbones.text_cache.computes_bfloat16", lambda: True)
    model.enable_text_cache("disk" if why == "disk" else "memory", tmp_path, "bfloat16" if why == "narrow" else None)
    if why == "known":
        model.build_text_cache([texts_of(batch["input_ids"], batch["attention_mask"])[1]])
    runs, n = counted(model), model.active_stack.num_tokens
    with torch.set_grad_enabled(why == "graph"), torch.autocast(device, torch.bfloat16, enabled=why == "autocast"):
        model(**batch)
    assert all(positions[-1] == n for positions in runs.values())
    assert all(len(positions) >= 2 for positions in runs.values())
    assert len(model.text_cache) == (2 if why == "twice" else 3)
