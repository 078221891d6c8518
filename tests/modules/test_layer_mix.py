"""A mix of layers is a mean at the start, and any weighted mean later."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from deepmlf_llm.modules import LayerMix


def test_weighs_each_layer_by_a_softmax():
    mix = LayerMix([2, 5]).double()
    tokens, text = torch.randn(3, 4, 6, 8).double(), torch.randn(3, 4, 8).double()
    found = mix(list(tokens), list(text))
    assert_close(found[0], tokens.mean(dim=0))
    assert_close(found[1], text.mean(dim=0))
    with torch.no_grad():
        mix.tokens.copy_(torch.tensor([0.0, 1.0, -1.0]))
        mix.text.copy_(torch.tensor([9.0, 0.0, 0.0]))
    e = torch.tensor([1.0, 2.718281828459045, 1 / 2.718281828459045]).double()
    found = mix(list(tokens), list(text))
    assert_close(found[0], sum(e[k] / e.sum() * tokens[k] for k in range(3)))
    assert (found[1] - text[0]).abs().max() < 0.01


def test_is_computed_in_the_dtype_of_its_weights_and_never_decayed():
    mix = LayerMix([1])
    found = mix([torch.randn(1, 2, 4).bfloat16()] * 2, [torch.randn(1, 4).bfloat16()] * 2)
    assert {x.dtype for x in found} == {torch.float32}
    assert all(parameter.dim() == 1 for parameter in mix.parameters())
