"""On every decoder family: the round trip is exact, ``lora/`` is plain PEFT's, and merging keeps predictions."""

from __future__ import annotations

import peft
import pytest
import torch

from deepmlf_llm.model.peft_model import DeepMLFModel
from tests.families import FAMILY_NAMES, tiny_batch, tiny_family, tiny_model

BOUND_FP32 = 1e-5
SETTINGS = {
    "lora": {"r": 2, "target_modules": "all-linear", "use_rslora": True},
    "dora": {"r": 2, "target_modules": "all-linear", "use_dora": True, "ffw_scope": "fusion"},
    "copy": {"ffw_weights": "copy", "gate": "tanh"},
}


def trained(family, settings):
    """A model whose every weight has moved, LoRA on the LM and copied FFWs included."""
    model = tiny_model(tiny_family(family), **SETTINGS[settings])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return model


@torch.no_grad()
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_saved_and_merged_models_predict_the_same(family, settings, tmp_path):
    model, batch = trained(family, settings), tiny_batch()
    expected = model(**batch).polarity
    model.save_pretrained(tmp_path / "adapter")
    again = DeepMLFModel.from_pretrained(tmp_path / "adapter", base=tiny_family(family))
    assert torch.equal(again(**batch).polarity, expected)
    if model.deepmlf_config.has_lm_lora:
        plain = peft.PeftModel.from_pretrained(tiny_family(family), tmp_path / "adapter" / "lora")
        ids = batch["input_ids"]
        assert torch.equal(plain(ids).logits, model.get_base_model()(ids).logits)  # no fusion tokens in this pass
        assert not torch.allclose(plain(ids).logits, tiny_family(family)(ids).logits, atol=1e-2)
    merged = model.merge_and_unload()
    assert (merged(**batch).polarity - expected).abs().max() < BOUND_FP32
    merged.save_pretrained(tmp_path / "merged")
    loaded = DeepMLFModel.from_pretrained(tmp_path / "merged", dtype="float32")
    assert torch.equal(loaded(**batch).polarity, merged(**batch).polarity)
