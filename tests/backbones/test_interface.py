"""Where each family keeps its parts, checked against live models; errors that name the step that fails."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from deepmlf_llm.backbones import FAMILIES, Decoder, DecoderInterface, register_family
from deepmlf_llm.errors import BaseModelError
from tests.families import FAMILY_NAMES, HEADS, LAYERS, WIDTH, tiny_batch, tiny_config, tiny_family, tiny_model


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_declared_path_is_there(family):
    lm = tiny_family(family)
    decoder = Decoder(lm)
    assert (decoder.num_layers, decoder.width, decoder.num_heads) == (LAYERS, WIDTH, HEADS)
    assert decoder.embeddings is lm.get_input_embeddings()
    batch = tiny_batch()
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    out = lm(**text, output_hidden_states=True)
    assert torch.equal(decoder.logits(out.hidden_states[-1]), out.logits), "soft caps included"
    norm = nn.RMSNorm if decoder.interface.rms_norm else nn.LayerNorm
    assert ("RMS" in type(decoder.ffw_norm(0)).__name__) is (norm is nn.RMSNorm)
    assert ("RMS" in type(decoder.final_norm).__name__) is (norm is nn.RMSNorm)
    for index in range(LAYERS):
        inside = {id(module) for module in decoder.layers[index].modules()}
        parts = decoder.ffw_parts(index)
        assert all(id(module) in inside for module in (*parts.projections().values(), decoder.ffw_norm(index)))


def test_lora_on_the_lm_is_looked_through():
    model = tiny_model(tiny_family("llama"), r=2, target_modules=["up_proj", "down_proj"])
    decoder = model.base_model.fused.decoder
    assert all(type(part) is nn.Linear for part in decoder.ffw_parts(1).projections().values())
    assert "lora" in type(decoder.layers[1].mlp.up_proj).__module__


def test_a_family_of_the_users_own():
    lm = tiny_family("llama")
    lm.config.model_type = "my_llama"
    with pytest.raises(BaseModelError, match=r"'my_llama' is not declared .*lists of layers: model.layers"):
        Decoder(lm)
    try:
        register_family("my_llama", dataclasses.replace(FAMILIES["llama"], family="my_llama"))
        assert Decoder(lm).interface.family == "my_llama"
        tiny_model(lm, modalities={"audio": {"dim": 2}})
    finally:
        FAMILIES.pop("my_llama", None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": "blocks"}, r"layers='blocks' is not there: LlamaModel has no 'blocks' \(it has: .*layers"),
        ({"gate": "gating"}, r"gate='gating' is not there: LlamaMLP has no 'gating'"),
        ({"ffw": "mlp.inner"}, r"ffw='mlp.inner' is not there: LlamaDecoderLayer.mlp has no 'inner'"),
        ({"post_norm": "out_norm"}, "post_norm='out_norm' is not there"),
        ({"layers": "norm"}, "layers='norm' is not a ModuleList"),
    ],
)
def test_a_wrong_path_is_named_with_where_it_ends(changes, message):
    with pytest.raises(BaseModelError, match=message):
        Decoder(tiny_family("llama"), dataclasses.replace(FAMILIES["llama"], **changes))


def test_the_default_interface_is_llamas():
    llama = dataclasses.replace(FAMILIES["llama"], plain_attention=False)  # nobody's attention is taken for plain
    assert DecoderInterface("llama") == llama
    assert tiny_config().ffw_weights == "shared"
