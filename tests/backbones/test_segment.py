"""A segment runs the live decoder's own parts, whatever happened to them since, and touches none of them."""

from __future__ import annotations

import threading
from functools import partial
from types import MethodType

import pytest
import torch
from torch import nn

from deepmlf_llm.backbones import Decoder, DecoderInterface, PrefixCache, read_text, run_layers
from deepmlf_llm.backbones.segment import segment
from deepmlf_llm.errors import InjectionError
from tests.families import FAMILY_NAMES, LAYERS, tiny_batch, tiny_family


def embedded(decoder):
    batch = tiny_batch()
    return decoder.embeddings(batch["input_ids"]), batch["attention_mask"]


def everything(lm):
    """Every entry of every module's own dictionary, containers opened."""
    return [
        (name, entry, dict(value) if isinstance(value, dict) else value)
        for name, module in lm.named_modules()
        for entry, value in vars(module).items()
    ]


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_partial_passes_write_nothing_into_the_live_model(family, monkeypatch):
    decoder = Decoder(tiny_family(family))
    for layer in decoder.layers:
        layer.training = True  # as under activation checkpointing
    embeddings, mask = embedded(decoder)
    before = everything(decoder.lm)
    written = []
    monkeypatch.setattr(nn.Module, "__setattr__", lambda module, name, value: written.append((module, name)))
    below = run_layers(decoder, embeddings, mask, last=2)
    run_layers(decoder, below, mask, first=2)
    read_text(decoder, embeddings, mask, 3)
    monkeypatch.undo()
    own = {id(module) for module in decoder.lm.modules()}
    assert not [name for module, name in written if id(module) in own]
    assert everything(decoder.lm) == before


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "opt"])
def test_threads_that_run_other_layers_of_one_model_do_not_disturb_each_other(family):
    decoder = Decoder(tiny_family(family))
    embeddings, mask = embedded(decoder)
    ranges = [(0, 1), (0, 3), (1, None), (2, 3), (0, None), (3, None)]
    expected = [run_layers(decoder, embeddings, mask, *span) for span in ranges]
    wrong, start = [], threading.Barrier(4)

    def work(offset):
        start.wait(60)
        for turn in range(24):
            which = (turn + offset) % len(ranges)
            with torch.no_grad():
                if not torch.equal(run_layers(decoder, embeddings, mask, *ranges[which]), expected[which]):
                    wrong.append(ranges[which])

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_the_whole_decoder_is_the_live_body_itself():
    decoder = Decoder(tiny_family("llama"))
    assert segment(decoder) is decoder.body
    assert segment(decoder, keep_activations=True) is decoder.body, "nothing is checkpointed"


@torch.no_grad()
def test_whatever_is_changed_later_holds_for_the_next_pass():
    lm = tiny_family("gpt2")
    decoder = Decoder(lm)
    embeddings, mask = embedded(decoder)

    def halves(entering):
        return run_layers(decoder, run_layers(decoder, entering, mask, last=2), mask, first=2)

    def check(entering):
        assert torch.equal(halves(entering), run_layers(decoder, entering, mask))

    check(embeddings)
    from peft import LoraConfig, inject_adapter_in_model

    before = halves(embeddings)
    inject_adapter_in_model(LoraConfig(target_modules=["c_proj"], fan_in_fan_out=True, init_lora_weights=False), lm)
    lm.eval()
    check(embeddings)
    assert not torch.equal(halves(embeddings), before)
    lm.set_attn_implementation("eager")
    check(embeddings)
    lm.double()
    check(embeddings.double())
    decoder.layers[3] = decoder.layers[0]
    check(embeddings.double())
    lm.config.layer_norm_epsilon = lm.transformer.ln_f.eps = 1.0
    check(embeddings.double())


@torch.no_grad()
@pytest.mark.parametrize("how", ["method", "partial"])
def test_a_forward_bound_to_the_body_is_bound_to_the_segment(how):
    """Kernels replace forwards by methods, accelerate by partial functions over the module."""
    decoder = Decoder(tiny_family("llama"))
    embeddings, mask = embedded(decoder)
    expected = run_layers(decoder, embeddings, mask, last=2)
    seen = []

    def forward(body, *args, **kwargs):
        seen.append(len(body.layers))
        return type(body).forward(body, *args, **kwargs)

    decoder.body.forward = MethodType(forward, decoder.body) if how == "method" else partial(forward, decoder.body)
    assert torch.equal(run_layers(decoder, embeddings, mask, last=2), expected)
    assert seen == [2]


def test_a_forward_that_cannot_be_followed_is_refused_with_the_way_out():
    decoder = Decoder(tiny_family("llama"))
    embeddings, mask = embedded(decoder)
    own = decoder.body.forward
    decoder.body.forward = lambda *args, **kwargs: own(*args, **kwargs)
    run_layers(decoder, embeddings, mask)
    with pytest.raises(InjectionError, match=r"forward of the language model's LlamaModel was replaced .*text_once"):
        run_layers(decoder, embeddings, mask, last=2)


@torch.no_grad()
def test_layers_below_another_module_are_found_by_their_path():
    lm = tiny_family("gpt2")
    decoder = Decoder(lm, DecoderInterface(**{**vars(Decoder(lm).interface), "body": "", "layers": "transformer.h",
                                              "final_norm": "transformer.ln_f"}))  # fmt: skip
    body = segment(decoder, 1, 3)
    assert (len(body.transformer.h), len(lm.transformer.h)) == (3, LAYERS)
    assert body.transformer.h[2] is lm.transformer.h[2]
    assert body.transformer.ln_f is not lm.transformer.ln_f


@torch.no_grad()
def test_recorded_states_are_those_of_whole_passes():
    lm = tiny_family("llama")
    decoder = Decoder(lm)
    embeddings, mask = embedded(decoder)
    expected = run_layers(decoder, embeddings, mask)
    lm.config.output_hidden_states = True
    for _ in range(2):
        assert torch.equal(run_layers(decoder, run_layers(decoder, embeddings, mask, last=2), mask, first=2), expected)
    assert not any(module._forward_hooks for module in lm.modules())
    assert len(lm(tiny_batch()["input_ids"]).hidden_states) == LAYERS + 1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_with_a_cache_activations_are_kept_though_checkpointing_was_asked_for(family):
    lm = tiny_family(family).train()
    lm.gradient_checkpointing_enable({"use_reentrant": False})
    decoder = Decoder(lm)
    embeddings, mask = embedded(decoder)
    stream = read_text(decoder, embeddings[:, :-2], mask[:, :-2])
    assert len(stream.keys_values) == LAYERS
    tokens = embeddings[:, -2:].detach().clone().requires_grad_()
    run_layers(decoder, tokens, mask, cache=PrefixCache(stream.keys_values, 6)).square().sum().backward()
    assert tokens.grad.abs().sum() > 0
    assert all(layer.training for layer in decoder.layers)
