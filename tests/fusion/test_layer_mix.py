"""Heads that read several layers: the states behind the MM Blocks as a whole pass has them, in every pass."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from deepmlf_llm.backbones import Decoder, PackedRows
from deepmlf_llm.backbones.text_cache import TextCache
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.errors import ConfigError
from deepmlf_llm.fusion.hooks import FusionState
from deepmlf_llm.model.peft_model import DeepMLFModel
from tests.families import tiny_batch, tiny_config, tiny_family, tiny_model

MIX = {"readout_layers": "mix"}
NAMES = ("polarity", "fusion_polarity", "text_polarity")


def mixed(family="llama", **settings):
    """More layers are read than the shortest text has tokens."""
    model = tiny_model(tiny_family(family), **{"fusion_layers": [0, 1, 2, 3], **MIX, **settings})
    with torch.no_grad():
        for weights in model.active_stack.layer_mix.parameters():
            weights.mul_(4.0)  # far from a mean
    return model


def expected_of(model):
    """From hooks of one whole pass of transformers' own forward."""
    batch, stack, lm = tiny_batch(), model.active_stack, model.get_base_model()
    decoder, n = Decoder(lm), stack.num_tokens
    context, readers = stack.encode({name: (batch[name], batch[f"{name}_mask"]) for name in ("audio", "vision")})
    inputs = torch.cat([lm.get_input_embeddings()(batch["input_ids"]), stack.fusion_tokens(3)], dim=1)
    mask = torch.cat([batch["attention_mask"], torch.ones(3, n).long()], dim=1)
    behind = {}
    handles = [
        layer.register_forward_hook(lambda m, a, out, index=index: behind.update({index: out}))
        for index, layer in enumerate(decoder.layers)
    ]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    state = FusionState(stack.blocks, readers, context.mask, n)
    decoder.body(inputs_embeds=inputs, attention_mask=mask, position_ids=positions, fusion_state=state)
    for handle in handles:
        handle.remove()
    states = [decoder.final_norm(behind[index]) for index in range(4)]
    weights = {name: w.softmax(0) for name, w in stack.layer_mix.named_parameters()}
    tokens = sum(w * x[:, -n:] for w, x in zip(weights["tokens"], states, strict=True))
    text = sum(w * x[:, -n - 1] for w, x in zip(weights["text"], states, strict=True))
    predictions = stack.heads(tokens, text, context.mean(), states[-1][:, -1])
    return {
        "polarity": predictions.final[:, 0],
        "fusion_polarity": predictions.fusion.mean(dim=1)[:, 0],
        "text_polarity": predictions.text[:, 0],
    }


def losses_and_gradients(model):
    model.zero_grad()
    out = model(**tiny_batch())
    out.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    return {name: out[name].detach() for name in NAMES}, gradients


@pytest.mark.parametrize("scope", ["joint", "fusion"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_every_pass_reads_the_same_states(family, scope):
    model = mixed(family, ffw_scope=scope)
    with torch.no_grad():
        expected = expected_of(model)
    plain = tiny_model(tiny_family(family), fusion_layers=[0, 1, 2, 3], ffw_scope=scope)(**tiny_batch())
    assert not torch.allclose(plain.text_polarity, expected["text_polarity"], atol=1e-3)
    passes = {"apart": losses_and_gradients(model)}
    model.enable_text_cache("memory", fusion_tokens=True)
    passes["into the cache"], passes["kept"] = losses_and_gradients(model), losses_and_gradients(model)
    model.enable_text_cache("none")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.fused_decoder.text_once = False
    passes["whole"] = losses_and_gradients(model)
    passes["recomputed"] = losses_and_gradients(train_without_noise(model))
    for name, (found, gradients) in passes.items():
        for head in NAMES:
            assert_close(found[head], expected[head], rtol=1e-4, atol=1e-5, msg=f"{name}: {head}")
        for key, gradient in passes["whole"][1].items():
            scale = float(gradient.abs().max()) + 1e-3
            assert_close(gradients[key], gradient, rtol=1e-3, atol=1e-4 * scale, msg=f"{name}: {key}")
    mix = [key for key in gradients if "layer_mix" in key]
    assert len(mix) == 2
    assert all(gradients[key].count_nonzero() == 4 for key in mix)


def train_without_noise(model):
    """Layers as in training, which is what has their activations recomputed; nothing drops out."""
    for layer in model.fused_decoder.decoder.layers:
        layer.training = True
    return model


@torch.no_grad()
def test_kept_tokens_packed_rows_and_lora_read_the_same_states():
    model = mixed()
    expected = {name: model(**tiny_batch())[name] for name in NAMES}
    model.get_base_model().set_attn_implementation("varlen")
    packed = []
    original = PackedRows.of
    PackedRows.of = classmethod(lambda cls, mask: packed.append(1) or original(mask))
    try:
        found = model(**tiny_batch())
    finally:
        PackedRows.of = original
    assert packed
    for name in NAMES:
        assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
    lora = mixed(r=2, target_modules=["q_proj"])
    for name, value in expected_of(lora).items():
        assert_close(lora(**tiny_batch())[name], value, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_is_kept_of_a_text_goes_by_the_layers_that_are_read(tmp_path):
    model = mixed(ffw_scope="fusion").eval()
    model.add_adapter("last", tiny_config(ffw_scope="fusion", fusion_layers=[0, 1, 2, 3]))
    model.enable_text_cache("memory")
    expected = model(**tiny_batch())["polarity"]
    model.set_adapter("last")
    plain = model(**tiny_batch())["polarity"]
    model.enable_text_cache("none")
    assert_close(model(**tiny_batch())["polarity"], plain, rtol=1e-4, atol=1e-5)
    model.set_adapter("default")
    for _ in range(2):
        model.enable_text_cache("disk", tmp_path)
        assert_close(model(**tiny_batch())["polarity"], expected, rtol=1e-4, atol=1e-5)
    decoder = model.fused_decoder.decoder
    keys = [TextCache(decoder, notes=notes)._key() for notes in ((), (0, 1), (0, 2))]
    assert keys[0] not in keys[1:]
    assert keys[1] != keys[2]
    assert "notes" not in keys[0]  # what earlier runs kept is found again
    assert TextCache(decoder, 2, notes=(0, 1))._key() == TextCache(decoder, 2)._key()


@torch.no_grad()
def test_is_saved_and_merged(tmp_path):
    model = mixed("gpt2", ffw_scope="fusion")
    expected = model(**tiny_batch()).polarity
    model.save_pretrained(tmp_path)
    again = DeepMLFModel.from_pretrained(tmp_path, base=tiny_family("gpt2"))
    assert torch.equal(again(**tiny_batch()).polarity, expected)
    assert_close(again.merge_and_unload()(**tiny_batch()).polarity, expected, rtol=1e-5, atol=1e-5)
    assert not [key for key in tiny_model(tiny_family("gpt2")).state_dict() if "layer_mix" in key]


def test_a_mix_of_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"readout_layers='mix' mixes .* fusion_layers=\[3\] has none below the last"):
        tiny_model(tiny_family("llama"), fusion_layers="last:1", **MIX)
    with pytest.raises(ConfigError, match="readout_layers='mix' is what the heads read, and readout='verbalised'"):
        DeepMLFConfig(readout="verbalised", **MIX)
