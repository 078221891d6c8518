"""Which adapter is at work, and what the plain LM is for."""

from __future__ import annotations

import pytest
import torch

from deepmlf_llm.errors import InjectionError
from tests.families import tiny_family, tiny_model


def test_a_fused_model_writes_no_text_and_says_who_does():
    model, ids = tiny_model(tiny_family("llama")), torch.arange(3, 9)[None]
    settings = {"max_new_tokens": 2, "do_sample": False}
    with pytest.raises(InjectionError, match=r"writes no text.*disable_adapter\(\)"):
        model.generate(input_ids=ids, **settings)
    expected = tiny_family("llama").generate(input_ids=ids, **settings)
    with model.disable_adapter():
        assert torch.equal(model.generate(input_ids=ids, **settings), expected)
    assert torch.equal(model.get_base_model().generate(input_ids=ids, **settings), expected)


def test_a_merged_model_writes_no_text_either():
    merged, ids = tiny_model(tiny_family("llama")).merge_and_unload(), torch.arange(3, 9)[None]
    with pytest.raises(InjectionError, match=r"writes no text.*merged\.lm\.generate"):
        merged.generate(ids)
    assert merged.lm.generate(input_ids=ids, max_new_tokens=2, do_sample=False).shape[0] == 1


@pytest.mark.parametrize("learns", [True, False])
def test_switching_off_and_on_leaves_what_is_trainable(learns):
    model = tiny_model(tiny_family("llama"), r=2, target_modules=["q_proj"], inference_mode=not learns)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert any(before.values()) is learns
    with model.disable_adapter():
        pass
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
