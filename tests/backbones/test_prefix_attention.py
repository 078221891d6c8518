"""Attention over a kept prefix: the formula, its gradients, and no layer without its text."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from deepmlf_llm.backbones import Decoder, PrefixCache, read_text, run_layers
from deepmlf_llm.backbones.prefix_attention import prefix_attention
from deepmlf_llm.errors import BaseModelError
from tests.families import FAMILY_NAMES, tiny_batch, tiny_family

ROWS, GROUPS, TOKENS, TEXT, WIDTH = 2, 3, 4, 6, 8


class Kept:
    """One layer's prefix."""

    def __init__(self, *pair):
        self.pair = pair

    def of(self, layer_idx, dtype):
        assert layer_idx == 5
        return tuple(part.to(dtype) for part in self.pair)


class Layer(torch.nn.Module):
    layer_idx, num_key_value_groups, is_causal = 5, GROUPS, True


def random_parts(dtype=torch.float32, seed=0):
    """Query, key, value, and those of a prefix; two key-value heads."""
    torch.manual_seed(seed)
    query = torch.randn(ROWS, 2 * GROUPS, TOKENS, WIDTH, dtype=dtype)
    return query, *(torch.randn(ROWS, 2, n, WIDTH, dtype=dtype) for n in (TOKENS, TOKENS, TEXT, TEXT))


def by_hand(query, key, value, text_keys, text_values, mask, scaling):
    """Row by row, head by head, token by token."""
    keys, values = torch.cat([text_keys, key], dim=2), torch.cat([text_values, value], dim=2)
    out = torch.empty(ROWS, TOKENS, 2 * GROUPS, WIDTH)
    for row in range(ROWS):
        for head in range(2 * GROUPS):
            for token in range(TOKENS):
                seen = mask[row, 0, token]
                scores = scaling * keys[row, head // GROUPS][seen] @ query[row, head, token]
                out[row, token, head] = torch.softmax(scores, dim=0) @ values[row, head // GROUPS][seen]
    return out


def causal(padding=2):
    mask = torch.ones(TOKENS, TEXT + TOKENS, dtype=torch.bool).tril(TEXT).repeat(ROWS, 1, 1, 1)
    mask[0, ..., :padding] = False
    return mask


@pytest.mark.parametrize("mask", [causal(), causal(0)])
def test_it_is_softmax_over_prefix_and_tokens(mask):
    parts = random_parts()
    out, weights = prefix_attention(Layer(), *parts[:3], mask, scaling=0.3, text_prefix=Kept(*parts[3:]))
    assert weights is None
    assert_close(out, by_hand(*parts, mask, 0.3))


def test_without_a_prefix_bf16_is_fp32_to_rounding():
    query, key, value, *_ = random_parts()
    for mask in (torch.ones(ROWS, 1, TOKENS, TOKENS, dtype=torch.bool).tril(), None):
        expected, _ = prefix_attention(Layer(), query, key, value, mask)  # transformers' sdpa
        found, _ = prefix_attention(Layer(), *(x.bfloat16() for x in (query, key, value)), mask)
        assert_close(found.float(), expected, rtol=0.05, atol=0.03)


def test_no_gradient_is_computed_for_the_prefix():
    query, key, value, *text = random_parts()
    for part in (query, key, value):
        part.requires_grad_()

    def attend():
        return prefix_attention(Layer(), query, key, value, causal(), text_prefix=Kept(*text))[0]

    found = torch.autograd.grad(attend().square().sum(), (query, key, value))
    whole = by_hand(query, key, value, *text, causal(), WIDTH**-0.5)
    for a, b in zip(found, torch.autograd.grad(whole.square().sum(), (query, key, value)), strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-5)
    with FlopCounterMode(display=False) as counted:
        torch.autograd.grad(attend().square().sum(), (query, key, value))
    product = 2 * ROWS * 2 * GROUPS * TOKENS * WIDTH  # of queries with one key, or of weights with one value
    assert counted.get_total_flops() == product * (4 * (TEXT + TOKENS) + 2 * TOKENS)


def test_weights_are_dropped_in_training_only():
    parts = random_parts()
    layer, kept = Layer(), Kept(*parts[3:])
    first, second = (prefix_attention(layer, *parts[:3], causal(0), 0.5, text_prefix=kept)[0] for _ in range(2))
    assert not torch.equal(first, second)
    layer.eval()
    assert_close(
        prefix_attention(layer, *parts[:3], causal(0), 0.5, text_prefix=kept)[0],
        by_hand(*parts, causal(0), WIDTH**-0.5),
    )


@torch.no_grad()
@pytest.mark.parametrize("family", [name for name in FAMILY_NAMES if name != "gemma2"])  # it caps scores
def test_tokens_on_a_kept_text_are_the_whole_sequence(family):
    lm = tiny_family(family)
    decoder = Decoder(lm)
    batch = tiny_batch(padding=2)
    embeddings, mask = decoder.embeddings(batch["input_ids"]), batch["attention_mask"]
    expected = run_layers(decoder, embeddings, mask)[:, -2:]
    lm.set_attn_implementation("prefix")
    stream = read_text(decoder, embeddings[:, :-2], mask[:, :-2])
    found = run_layers(decoder, embeddings[:, -2:], mask, cache=stream.prefix(embeddings.shape[1] - 2))
    real = mask[:, -2:].bool()
    assert_close(found[real], expected[real], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 2])
def test_a_layer_that_hides_the_prefix_from_its_kernel_is_found_out(tokens):
    lm = tiny_family("llama")
    lm.set_attn_implementation("prefix")
    decoder = Decoder(lm)
    decoder.layers[2].self_attn.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {k: v for k, v in kwargs.items() if k != "text_prefix"}), with_kwargs=True
    )
    batch = tiny_batch()
    embeddings, mask = decoder.embeddings(batch["input_ids"]), batch["attention_mask"]
    stream = read_text(decoder, embeddings[:, :-tokens], mask[:, :-tokens])
    prefix = PrefixCache(stream.keys_values, embeddings.shape[1] - tokens)
    with pytest.raises(BaseModelError, match=r"does not hand the argument 'text_prefix' on to its kernel"):
        run_layers(decoder, embeddings[:, -tokens:], mask, cache=prefix)
