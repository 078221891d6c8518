"""A frozen decoder in parts is the decoder in one, on every family, sliding windows included."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from deepmlf_llm.backbones import Decoder, PrefixCache, positions, read_text, run_layers
from tests.families import FAMILY_NAMES, LAYERS, tiny_batch, tiny_family


def embedded(decoder, padding=0):
    batch = tiny_batch(padding=padding)
    return decoder.embeddings(batch["input_ids"]), batch["attention_mask"]


def base_states(lm, embeddings, mask):
    place = (mask.cumsum(-1) - 1).clamp(min=0)
    return lm(
        inputs_embeds=embeddings, attention_mask=mask, position_ids=place, output_hidden_states=True
    ).hidden_states


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_all_layers_and_any_range_of_them(family):
    lm = tiny_family(family)
    decoder = Decoder(lm)
    embeddings, mask = embedded(decoder)
    expected = base_states(lm, embeddings, mask)
    assert torch.equal(run_layers(decoder, embeddings, mask), expected[-1])
    for split in range(1, LAYERS + 1):
        below = run_layers(decoder, embeddings, mask, last=split)
        if split < LAYERS:
            assert torch.equal(below, expected[split])
        assert torch.equal(run_layers(decoder, below, mask, first=split), expected[-1]), split


@torch.no_grad()
@pytest.mark.parametrize("depth", [None, 1, 3, LAYERS])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_tokens_on_a_kept_text_are_the_whole_sequence(family, depth):
    lm = tiny_family(family)
    decoder = Decoder(lm)
    embeddings, mask = embedded(decoder)
    text, tokens = embeddings[:, :-2], embeddings[:, -2:]
    stream = read_text(decoder, text, mask[:, :-2], depth)
    kept = [t.clone() for pair in stream.keys_values for t in pair]
    whole = run_layers(decoder, embeddings, mask, last=depth)
    prefix = PrefixCache(stream.keys_values, text.shape[1])
    for _ in range(2):  # nothing grows
        found = run_layers(decoder, tokens, mask, last=depth, cache=prefix)
        real = mask[:, -2:].bool()
        assert_close(found[real], whole[:, -2:][real], rtol=1e-4, atol=1e-4)
    assert len(stream.keys_values) == (LAYERS if depth is None else depth)
    assert all(torch.equal(a, b) for a, b in zip(kept, (t for pair in stream.keys_values for t in pair), strict=True))
    expected = run_layers(decoder, text, mask[:, :-2], last=depth)
    assert torch.equal(stream.states, expected[:, -1:] if depth is None else expected)


def test_text_is_read_without_a_graph():
    decoder = Decoder(tiny_family("llama").requires_grad_(True))
    embeddings, mask = embedded(decoder)
    stream = read_text(decoder, embeddings, mask)
    assert not stream.states.requires_grad
    assert not any(t.requires_grad for pair in stream.keys_values for t in pair)


def test_gradients_reach_tokens_through_a_kept_text():
    decoder = Decoder(tiny_family("llama"))
    embeddings, mask = embedded(decoder)
    tokens = embeddings[:, -2:].clone().requires_grad_()
    (whole,) = torch.autograd.grad(
        run_layers(decoder, torch.cat([embeddings[:, :-2], tokens], dim=1), mask)[:, -2:].square().sum(), tokens
    )
    stream = read_text(decoder, embeddings[:, :-2], mask[:, :-2])
    (apart,) = torch.autograd.grad(
        run_layers(decoder, tokens, mask, cache=PrefixCache(stream.keys_values, 6)).square().sum(), tokens
    )
    assert_close(apart, whole, rtol=1e-3, atol=1e-4)


def test_nothing_is_left_behind_also_after_an_error():
    lm = tiny_family("gpt2")
    decoder = Decoder(lm)
    embeddings, mask = embedded(decoder)
    lm.gradient_checkpointing_enable()
    for layer in decoder.layers:
        layer.training = True
    read_text(decoder, embeddings, mask, 2)
    run_layers(decoder, embeddings, mask, first=1, last=3)
    with pytest.raises(RuntimeError):
        run_layers(decoder, embeddings[..., :3], mask, first=2, cache=PrefixCache([], 0))
    for module in lm.modules():
        assert "forward" not in vars(module)
        assert not module._forward_pre_hooks
    assert not any(layer._forward_hooks for layer in decoder.layers)
    assert all(layer.training for layer in decoder.layers)


def test_a_forward_of_the_users_own_comes_back():
    decoder = Decoder(tiny_family("llama"))
    embeddings, mask = embedded(decoder)
    calls = []
    layer = decoder.layers[3]
    own = layer.forward

    def forward(*args, **kwargs):
        calls.append(1)
        return own(*args, **kwargs)

    layer.forward = forward
    run_layers(decoder, embeddings, mask, last=2)
    assert not calls
    run_layers(decoder, embeddings, mask)
    assert calls == [1]
    assert layer.forward is forward


def test_positions_count_real_tokens_only():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert positions(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]


def test_a_prefix_is_cast_to_the_dtype_of_what_follows():
    keys = torch.zeros(1, 2, 3, 4, dtype=torch.bfloat16)
    news = torch.ones(1, 2, 1, 4)
    prefix = PrefixCache([(keys, keys)], 3)
    joined, _ = prefix.update(news, news, 0)
    assert (joined.dtype, joined.shape[2]) == (torch.float32, 4)
    assert prefix.get_seq_length() == prefix.get_query_offset() == 3
    assert prefix.get_mask_sizes(2, 0) == prefix.get_mask_sizes(torch.arange(2), 0) == (5, 0)
