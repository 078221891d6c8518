from __future__ import annotations

import bitsandbytes
import pytest
import torch
from peft import get_peft_model_state_dict

from deepmlf_llm.adapters.compatibility import adapter_tensors, live_tensors
from deepmlf_llm.backbones import load_base_model
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.model.peft_model import DeepMLFModel
from tests.families import tiny_family


def same_objects(tensors: dict[str, torch.Tensor]) -> list[tuple[str, int]]:
    return [(name, id(tensor)) for name, tensor in tensors.items()]


def test_an_adapters_tensors_are_those_of_the_state_dict_and_no_4_bit_layer_is_packed_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = DeepMLFConfig(fusion_layers=[1, 3], modalities={"audio": {"dim": 5}}, head_norm="batch", r=2)
    model = DeepMLFModel(load_base_model("tiny-llama", quantization="nf4"), config)
    model.active_stack.register_buffer("unsaved", torch.zeros(1), persistent=False)
    whole = model.state_dict(keep_vars=True)
    expected = get_peft_model_state_dict(model, whole, adapter_name="default", save_embedding_layers=False)
    assert any(".quant_state." in name for name in whole)
    assert any(name.endswith("running_var") for name in expected)

    def packed(*_: object, **__: object) -> None:
        raise AssertionError("a quantization state was packed")

    monkeypatch.setattr(bitsandbytes.functional.QuantState, "as_dict", packed)
    assert same_objects(adapter_tensors(model, "default")) == same_objects(expected)


def test_live_tensors_are_in_the_order_of_the_state_dict_and_tied_weights_under_both_names() -> None:
    lm = tiny_family("gpt2")
    found = same_objects(live_tensors(lm))
    assert found == same_objects(lm.state_dict(keep_vars=True))
    assert len(found) == len({tensor for _, tensor in found}) + 1
