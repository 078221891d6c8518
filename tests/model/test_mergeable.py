"""What is merged predicts what the adapter did, or is not merged."""

from __future__ import annotations

import peft
import pytest
import torch
from torch.testing import assert_close

from deepmlf_llm.errors import ConfigError, InjectionError
from deepmlf_llm.model.merged import MergedDeepMLF
from tests.families import randomise, tiny_batch, tiny_config, tiny_family, tiny_model

VERBALISED = {"readout": "verbalised", "verbalised_ids": {str(step): 5 + step for step in range(1, 8)}}


def lora_on(target, tied, **settings):
    model = tiny_model(tiny_family("llama", tie_word_embeddings=tied), r=2, target_modules=[target], **settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    ("target", "settings", "message"),
    [
        ("lm_head", {"objective": {"gamma": 0.1}}, "the LM's head, which is its embeddings, too"),
        ("embed_tokens", VERBALISED, "which are also the head that readout='verbalised' reads"),
    ],
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`")
def test_lora_on_one_side_of_tied_weights_is_not_folded_into_both(target, settings, message):
    model, batch = lora_on(target, tied=True, **settings), tiny_batch()
    expected = model(**batch).polarity
    for merge in (model.merge_and_unload, model.base_model.merge_adapter):
        with pytest.raises(ConfigError, match=f"cannot merge: LoRA is on .*{message}"):
            merge()
    assert_close(model(**batch).polarity, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("target", "tied", "settings"),
    [
        ("lm_head", False, {"objective": {"gamma": 0.1}}),
        ("embed_tokens", False, VERBALISED),
        ("embed_tokens", True, {}),
        ("q_proj", True, VERBALISED),
    ],
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`")
def test_where_nothing_else_changes_it_is_folded_and_predicts_the_same(tmp_path, target, tied, settings):
    model, batch = lora_on(target, tied, **settings), tiny_batch()
    expected = model(**batch).polarity
    merged = model.merge_and_unload()
    assert_close(merged(**batch).polarity, expected, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(tmp_path)
    assert_close(MergedDeepMLF.from_pretrained(tmp_path)(**batch).polarity, expected, rtol=1e-4, atol=1e-5)


def test_the_active_adapter_alone_is_merged():
    model, batch = tiny_model(tiny_family("llama")), tiny_batch()
    model.add_adapter("b", tiny_config())
    with pytest.raises(InjectionError, match=r"adapter_names=\['b'\].*active adapter alone.*'default'"):
        model.merge_and_unload(adapter_names=["b"])
    expected = model(**batch).polarity
    assert_close(model.merge_and_unload(adapter_names=["default"])(**batch).polarity, expected, rtol=1e-5, atol=1e-6)


def test_pefts_own_class_merges_and_refuses_like_ours():
    model, batch = peft.get_peft_model(tiny_family("llama"), tiny_config()), tiny_batch()
    randomise(model)
    expected = model(**batch).polarity
    with pytest.raises(InjectionError, match="writes no text"):
        model.generate(input_ids=batch["input_ids"])
    with pytest.raises(InjectionError, match="have no sum"):
        model.base_model.add_weighted_adapter(["default"], [1.0], "sum")
    merged = model.merge_and_unload()
    assert isinstance(merged, MergedDeepMLF)
    assert_close(merged(**batch).polarity, expected, rtol=1e-5, atol=1e-6)
