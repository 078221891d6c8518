"""MM Block: both equations of section 3, in both scopes, after LLaMA and GPT-2 blocks, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from deepmlf_llm.modules.context_reading import KeyValues
from tests import reference
from tests.families import HEADS, WIDTH, randomise, tiny_family, tiny_model

REFERENCES = {"llama": reference.reference_llama, "gpt2": reference.reference_gpt2}
L, N, T = 6, 3, 4


@pytest.mark.parametrize("gate", ["sigmoid", "tanh", "none"])
@pytest.mark.parametrize("weights", ["shared", "copy"])
@pytest.mark.parametrize("scope", ["joint", "fusion"])
@pytest.mark.parametrize("family", REFERENCES)
def test_equals_its_equations(family, scope, weights, gate):
    lm = tiny_family(family)
    model = tiny_model(lm, ffw_scope=scope, ffw_weights=weights, gate=gate, ffw_lora_alpha=10.0).double()
    stack = randomise(model).base_model.active_stack
    block, w = stack.blocks[3], reference.weights_of(stack.blocks[3])
    projection = torch.randn(2 * WIDTH, 12).double()
    context = torch.randn(2, T, 12).double()
    mask = torch.tensor([[True] * T, [True, True, False, False]])
    hidden = torch.randn(2, L + N, WIDTH).double()
    with torch.no_grad():
        found = block(hidden, KeyValues(context @ projection.T), mask, N)
    settings = reference.Settings(heads=HEADS, gate=gate, ffw_scope=scope, lora_scale=10.0 / 4)
    for row, frames in enumerate(mask.sum(1).tolist()):
        parts = hidden[row, :L], hidden[row, L:]
        expected = torch.cat(
            reference.mm_block(REFERENCES[family](lm), 3, *parts, context[row, :frames], w, projection, settings)
        )
        assert_close(found[row], expected, rtol=0, atol=1e-14 * expected.abs().max().item())
    if scope == "fusion":
        assert torch.equal(found[:, :L], hidden[:, :L])
    else:
        assert not torch.isclose(found[:, :L], hidden[:, :L]).all(-1).any()


@pytest.mark.parametrize("scope", ["joint", "fusion"])
def test_meets_a_bf16_lm_at_its_boundary(scope):
    model = tiny_model(tiny_family("llama"), ffw_scope=scope)
    block = model.base_model.active_stack.blocks[1]
    hidden, key_value = torch.randn(2, L + N, WIDTH), torch.randn(2, T, 2 * WIDTH)
    mask = torch.ones(2, T).bool()
    with torch.no_grad():
        expected = block(hidden, KeyValues(key_value), mask, N)
        model.base_model.model.bfloat16()
        found = block(hidden.bfloat16(), KeyValues(key_value), mask, N)
    assert found.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in block.parameters())
    assert (found.float() - expected).norm() < 0.02 * expected.norm()


def test_gates_shut_returns_the_input_bit_for_bit():
    stack = tiny_model(tiny_family("gpt2")).base_model.active_stack
    hidden, key_value, mask = torch.randn(2, L + N, WIDTH), torch.randn(2, T, 2 * WIDTH), torch.ones(2, T).bool()
    with stack.gates_shut(), torch.no_grad():
        assert torch.equal(stack.blocks[1](hidden, KeyValues(key_value), mask, N), hidden)
