"""Whichever kernel the LM's attention runs on, the whole model says the same, and learns the same."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from deepmlf_llm.backbones import load_base_model
from deepmlf_llm.errors import BaseModelError
from tests.families import FAMILY_NAMES, POLARITIES, losses_and_gradients, tiny_batch, tiny_family, tiny_model


def model_on(kernel, family, **settings):
    lm = tiny_family(family)
    lm.set_attn_implementation(kernel)
    assert lm.config._attn_implementation == kernel
    return tiny_model(lm, **settings)


@pytest.mark.parametrize("settings", [{}, {"ffw_scope": "fusion"}, {"r": 2, "target_modules": "all-linear"}])
@pytest.mark.parametrize("kernel", ["sdpa", "varlen", "prefix"])
@pytest.mark.parametrize("family", [name for name in FAMILY_NAMES if name != "gemma2"])  # it caps scores: eager only
def test_kernels_agree_with_eager_on_either_padding(family, kernel, settings):
    expected, expected_gradients = losses_and_gradients(model_on("eager", family, **settings), **tiny_batch())
    for side, padding in (("left", 0), ("left", 3), ("right", 2)):
        found, gradients = losses_and_gradients(model_on(kernel, family, **settings), **tiny_batch(side, padding))
        for name, value in expected.items():
            assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=f"{side} {padding}: {name}")
        for name, value in expected_gradients.items():
            scale = float(value.abs().max()) + 1e-3
            assert_close(gradients[name], value, rtol=1e-3, atol=1e-4 * scale, msg=f"{side} {padding}: {name}")


@pytest.mark.parametrize("kernel", ["sdpa", "varlen", "prefix"])
def test_a_kernel_that_cannot_cap_scores_is_refused_in_one_line(tmp_path, kernel):
    tiny_family("gemma2").save_pretrained(tmp_path)
    assert load_base_model(str(tmp_path)).config._attn_implementation == "eager"
    with pytest.raises(BaseModelError, match=r"(sdpa|varlen|prefix|scaled_dot_product).*") as caught:
        load_base_model(str(tmp_path), attn_implementation=kernel)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scope", ["joint", "fusion"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_flex_attention_agrees_with_eager(family, side, scope):
    """Its masks and score functions, forward only, in PyTorch's plain reference of the kernel: it has no backward pass
    on a CPU, where ``load_base_model`` refuses it."""
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        expected = model_on("eager", family, ffw_scope=scope)(**tiny_batch())
        found = model_on("flex_attention", family, ffw_scope=scope)(**tiny_batch(side, 2))
    for name in POLARITIES:
        assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5, msg=name)
