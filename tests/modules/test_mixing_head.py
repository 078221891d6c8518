"""The head in which groups of fusion tokens meet, against its formula."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from deepmlf_llm.modules import Heads, MixingHead
from tests.reference import attention, gelu_exact, layer_norm, linear, task_head, under, weights_of

B, D, WIDTH, HEADS, SIZES = 2, 6, 8, 2, (2, 1, 3)


def built(**settings):
    given = {"out_width": WIDTH, "num_layers": 2, "num_heads": HEADS, "ffw_width": 5, "dropout": 0.3} | settings
    head = MixingHead(D, SIZES, **given).double().eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return head


def formula(tokens, w):
    """One utterance [n x d] -> [w]"""
    rows = [tokens[i] @ w["projection.weight"].T + w["projection.bias"] for i in range(len(tokens))]
    x = torch.stack([row + w["groups.weight"][group] for row, group in zip(rows, [0, 0, 1, 2, 2, 2], strict=True)])
    for i in range(2):
        at = under(w, f"layers.{i}.")
        query, key, value = linear(layer_norm(x, at, "attention_norm", 1e-5), at, "query_key_value").chunk(3, dim=1)
        x = x + linear(attention(query, key, value, HEADS), at, "output")
        x = x + linear(gelu_exact(linear(layer_norm(x, at, "ffw_norm", 1e-5), at, "ffw.0")), at, "ffw.3")
    return layer_norm(x, w, "norm", 1e-5).mean(0)


def test_equals_its_formula_and_feeds_the_task_head_alone():
    head, tokens = built(), torch.randn(B, 6, D).double()
    expected = torch.stack([formula(row, weights_of(head)) for row in tokens])
    assert_close(head(tokens), expected)
    heads = Heads(D, 5, hidden_width=7, mixing=head).double().eval()
    last_text, context = torch.randn(B, D).double(), torch.randn(B, 5).double()
    found, w = heads(tokens, last_text, context), weights_of(heads)
    assert_close(found.task, task_head(torch.cat([expected, last_text, context], dim=1), under(w, "task.")))
    assert_close(found.fusion, linear(tokens, w, "fusion"))


def test_it_starts_as_small_as_fusion_tokens_do():
    weight = MixingHead(D, (1,) * 200, 100, 1, 2, 5, 0.0).groups.weight
    assert abs(weight.std().item() - 0.02) < 1e-3
