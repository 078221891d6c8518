"""Mirrors ``planning/parameters.py``, ``packed.py`` and ``geometries.py``: against models that are built."""

from __future__ import annotations

import pytest
import torch

from deepmlf_llm.backbones import load_base_model
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.errors import BaseModelError
from deepmlf_llm.model.peft_model import DeepMLFModel
from deepmlf_llm.planning.geometries import GEOMETRIES, planned_shape
from deepmlf_llm.planning.packed import packed_bytes
from deepmlf_llm.planning.parameters import parameters_by_part

MODALITIES = {"audio": {"dim": 16}, "vision": {"dim": 20}}
PUBLISHED = {  # parameters, by the makers
    "smollm2-135m": 134_515_008,
    "llama-1b": 1_235_814_400,
    "llama-3b": 3_212_749_824,
    "llama-8b": 8_030_261_248,
    "llama-70b": 70_553_706_496,
    "llama-405b": 405_853_388_800,
    "mistral-7b": 7_248_023_552,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-72b": 72_706_203_648,
}


def planned(name: str, **settings) -> DeepMLFModel:
    shape = planned_shape(name)
    with torch.device("meta"):
        return DeepMLFModel(shape, DeepMLFConfig(**{"fusion_layers": "even:2", "modalities": MODALITIES, **settings}))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("tiny-llama", {}),
        ("tiny-mistral", {"ffw_scope": "fusion", "r": 4}),
        ("tiny-gpt2", {"ffw_weights": "copy"}),
        ("tiny-llama", {"token_topology": "segregated", "num_fusion_tokens": 9, "readout_layers": "mix"}),
        ("tiny-llama", {"modalities": {}, "freeze_fusion_tokens": True}),
        ("tiny-llama", {"freeze_av_encoder": True, "objective": {"lambda_prototypes": 1.0}}),
    ],
    ids=str,
)
def test_the_parts_are_those_of_a_built_model(name, settings):
    config = DeepMLFConfig(**{"fusion_layers": "even:2", "modalities": MODALITIES, **settings})
    built = DeepMLFModel(load_base_model(name), config)
    parts = {part.name: part for part in parameters_by_part(planned(name, **settings), torch.float32)}
    parameters = list(built.parameters())
    assert sum(part.total for part in parts.values()) == sum(p.numel() for p in parameters)
    assert sum(part.trained for part in parts.values()) == sum(p.numel() for p in parameters if p.requires_grad)
    assert sum(part.size for part in parts.values()) == sum(p.numel() * p.element_size() for p in parameters)
    lora = sum(p.numel() for n, p in built.named_parameters() if "lora_" in n and ".deepmlf." not in n)
    assert (parts["LoRA on the LM"].total if "LoRA on the LM" in parts else 0) == lora
    assert parts["language model"].trained == 0
    if "AV encoder" in parts:
        assert parts["AV encoder"].total == sum(p.numel() for p in built.active_stack.av_encoder.parameters())


def test_quantized_bytes_are_those_of_bitsandbytes():
    pytest.importorskip("bitsandbytes")
    built = load_base_model("tiny-llama", quantization="nf4", dtype="float32")
    weight = built.model.layers[0].mlp.up_proj.weight
    state = weight.quant_state
    tables = [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    real = weight.numel() * weight.element_size() + sum(t.numel() * t.element_size() for t in tables)
    assert packed_bytes(160 * 64, 160, "nf4") == real
    parts = {p.name: p for p in parameters_by_part(planned("tiny-llama"), torch.float32, "nf4")}
    whole = {p.name: p for p in parameters_by_part(planned("tiny-llama"), torch.float32)}
    assert parts["language model"].total == whole["language model"].total
    assert parts["language model"].size < whole["language model"].size
    assert parts["MM Blocks"].size == whole["MM Blocks"].size


@pytest.mark.parametrize("name", GEOMETRIES)
def test_geometries_have_the_parameters_that_their_makers_count(name):
    assert sum(p.numel() for p in planned_shape(name).parameters()) == PUBLISHED[name]


def test_a_geometry_is_cut_and_an_unknown_name_refused():
    assert len(planned_shape("llama-8b", 3).model.layers) == 3
    with pytest.raises(BaseModelError, match="llama-9b"):
        planned_shape("llama-9b")
