"""The public face: what it takes, what it gives, what it refuses, and the text cache behind it."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from torch.testing import assert_close

from deepmlf_llm.backbones import load_base_model
from deepmlf_llm.errors import BaseModelError, ConfigError, InjectionError
from deepmlf_llm.model.peft_model import DeepMLFModel
from tests.families import LENGTHS, randomise, tiny_batch, tiny_config, tiny_family, tiny_model

TEXTS = [list(range(3, 3 + length)) for length in LENGTHS]


@pytest.fixture(scope="module")
def model():
    return tiny_model(tiny_family("llama"), objective={"gamma": 0.5})


def test_output(model):
    out = model(**tiny_batch())
    for name in ("polarity", "fusion_polarity", "text_polarity", "av_polarity"):
        assert getattr(out, name).shape == (3,)
        assert getattr(out, name).dtype == torch.float32
    assert set(out.losses) == {"task", "fusion", "av", "text", "lm"}
    assert all(part.shape == () and part.dtype == torch.float32 for part in out.losses.values())
    weighted = {"task": 1.0, "fusion": 0.4, "av": 0.8, "text": 0.8, "lm": 0.5}
    assert_close(out.loss, sum(weight * out.losses[name] for name, weight in weighted.items()))
    assert out["polarity"] is out.polarity
    unlabelled = model(**{name: x for name, x in tiny_batch().items() if name != "labels"})
    assert unlabelled.loss is None
    assert unlabelled.losses is None
    assert torch.equal(unlabelled.polarity, out.polarity)


def test_arguments_by_position_and_by_name(model):
    batch = tiny_batch()
    by_position = model(batch.pop("input_ids"), batch.pop("attention_mask"), batch.pop("labels"), **batch)
    assert torch.equal(by_position.loss, model(**tiny_batch()).loss)


def test_parameter_groups_hold_every_trainable_parameter_once():
    model = tiny_model(tiny_family("llama"), r=2, target_modules=["q_proj"])
    groups = model.parameter_groups()
    assert set(groups) == {"av_encoder", "fusion", "lm_lora"}
    names = [name for group in groups.values() for name, _ in group]
    assert sorted(names) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    assert all("av_encoder" in name for name, _ in groups["av_encoder"])
    assert all("lora_" in name for name, _ in groups["lm_lora"])
    assert not any("av_encoder" in name for name, _ in groups["fusion"])
    assert not tiny_model(tiny_family("llama")).parameter_groups()["lm_lora"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_masters_are_fp32_on_any_base_and_learn(quantization, dtype):
    base = load_base_model("tiny-llama", quantization=quantization, dtype=dtype)
    frozen = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = DeepMLFModel(base, tiny_config(head_norm="layer"))
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    model.train()
    losses = []
    for _ in range(8):
        out = model(**tiny_batch())
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(out.loss.item())
    assert out.polarity.dtype == torch.float32
    assert losses[-1] < losses[0]
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in base.state_dict().items())


def encoder():
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20)
    )


def encoder_decoder():
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(T5Config(d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2, vocab_size=20))


def mixture_of_experts():
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(
        MixtralConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
            vocab_size=20, num_local_experts=2,
        )
    )  # fmt: skip


def headless():
    return tiny_family("llama").model


def unknown_family():
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM(BloomConfig(hidden_size=16, n_layer=2, n_head=2, vocab_size=20))


def projected_embeddings():
    return tiny_family("opt", word_embed_proj_dim=16)


def post_norm():
    return tiny_family("opt", do_layer_norm_before=False)


def no_transformer():
    return torch.nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (encoder, "base model of type 'bert' is not supported: it is not a causal decoder"),
        (encoder_decoder, "'t5' is not supported: it is an encoder-decoder"),
        (mixture_of_experts, "'mixtral' is not supported: its FFW is a mixture of experts"),
        (headless, "LlamaModel is not a causal language model of transformers"),
        (unknown_family, "decoder family 'bloom' is not declared .*its lists of layers: transformer.h"),
        (projected_embeddings, "'opt' decoder has layers of width 32, embeddings of width 16"),
        (post_norm, "'opt' decoder has .* no final norm"),
        (no_transformer, "Linear is not a causal language model"),
    ],
)
def test_bases_that_cannot_carry_it_are_refused_and_left_alone(make, message):
    base = make().requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    with pytest.raises(BaseModelError, match=message):
        DeepMLFModel(base, tiny_config())
    after = base.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(p.requires_grad for p in base.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in base.modules())
    assert not hasattr(base, "peft_config")


def test_a_base_that_carries_an_adapter_is_refused():
    base = tiny_family("llama")
    lora = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"]))
    for wrapped in (lora, lora.base_model.model, tiny_model(tiny_family("llama"))):
        with pytest.raises(InjectionError, match="carries a PEFT adapter already"):
            DeepMLFModel(wrapped, tiny_config())


def test_the_text_cache_computes_each_text_once(monkeypatch):
    import deepmlf_llm.backbones.text_cache as room

    read = []
    whole = room.read_noting

    def counted(decoder, embeddings, *others):
        read.append(len(embeddings))
        return whole(decoder, embeddings, *others)

    monkeypatch.setattr(room, "read_noting", counted)
    model = tiny_model(tiny_family("llama"))
    model.enable_text_cache("memory")
    foretold = model.text_cache.predicted_bytes([*TEXTS, TEXTS[0]])
    read.clear()
    heard = []
    size = model.build_text_cache([*TEXTS, TEXTS[0]], progress=heard.append)
    assert sum(read) == sum(heard) == len(model.text_cache) == 3
    assert size == model.text_cache.nbytes == foretold
    read.clear()
    ids = torch.zeros(3, 8, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(TEXTS):
        ids[row, 8 - len(text) :], mask[row, 8 - len(text) :] = torch.tensor(text), 1
    batch = tiny_batch(input_ids=ids, attention_mask=mask)
    cached = model(**batch).polarity
    assert not read
    model.enable_text_cache("none")
    assert_close(model(**batch).polarity, cached, rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match="no text cache: call enable_text_cache"):
        model.text_cache  # noqa: B018


@pytest.mark.parametrize("scope", ["joint", "fusion"])
@pytest.mark.parametrize(
    ("storage", "tolerance"), [(None, 1e-5), ("float32", 1e-5), ("bfloat16", 0.05), ("int8", 0.05)]
)
def test_disk_and_memory_caches_agree_with_none(tmp_path, scope, storage, tolerance):
    model, batch = tiny_model(tiny_family("gpt2"), ffw_scope=scope), tiny_batch()
    expected = model(**batch).polarity
    for kind in ("memory", "disk", "disk"):  # the second finds what the first has written
        model.enable_text_cache(kind, tmp_path, storage)
        before = len(model.text_cache)
        assert_close(model(**batch).polarity, expected, rtol=tolerance, atol=tolerance)
    assert before == 3


def test_a_disk_cache_of_another_model_is_never_read(tmp_path):
    """Fine-tuned models often keep their embeddings: their layers must count too."""
    base, batch = tiny_family("llama"), tiny_batch()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    for lm in (base, tuned):
        model = tiny_model(lm)
        expected = model(**batch).polarity
        model.enable_text_cache("disk", tmp_path)
        assert len(model.text_cache) == 0
        assert_close(model(**batch).polarity, expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def change_a_layer(lm):
    lm.model.layers[0].mlp.down_proj.weight.mul_(1.5)


def load_other_weights(lm):
    lm.load_state_dict(tiny_family("llama", seed=5).state_dict())


def change_the_dtype(lm):
    lm.to(torch.bfloat16)


@torch.no_grad()
def write_the_same(lm):  # as DDP does
    for weight in lm.parameters():
        weight.copy_(weight.clone())


@pytest.mark.parametrize("kind", ["memory", "disk"])
@pytest.mark.parametrize("settings", [{}, {"ffw_scope": "fusion"}])
@pytest.mark.parametrize("change", [change_a_layer, load_other_weights, change_the_dtype, write_the_same])
@torch.no_grad()
def test_kept_texts_go_with_the_lms_weights(tmp_path, kind, settings, change):
    model, batch = tiny_model(tiny_family("llama"), **settings), tiny_batch()
    model.enable_text_cache(kind, tmp_path, fusion_tokens=True)
    model(**batch)
    kept = model.text_cache.store
    change(model.get_base_model())
    found = [model(**batch).polarity for _ in range(2)]
    assert (model.text_cache.store is kept) is (change is write_the_same)
    assert len(model.text_cache) == len(model.fused_decoder.token_cache)
    model.enable_text_cache("none")
    for polarity in found:
        tolerance = 0.05 if change is change_the_dtype else 1e-5
        assert_close(polarity, model(**batch).polarity, rtol=tolerance, atol=tolerance)
    fresh = tiny_model(tiny_family("llama"), **settings)  # a folder never has a stream of other weights
    expected = fresh(**batch).polarity
    fresh.enable_text_cache(kind, tmp_path)
    assert_close(fresh(**batch).polarity, expected, rtol=1e-5, atol=1e-6)


def test_one_chosen_adapter_is_saved(tmp_path):
    model, batch = tiny_model(tiny_family("llama")), tiny_batch()
    model.add_adapter("b", tiny_config(fusion_layers=[2]))
    model.save_pretrained(tmp_path, selected_adapters=["b"])
    model.set_adapter("b")
    again = DeepMLFModel.from_pretrained(tmp_path, tiny_family("llama"))
    assert_close(again(**batch).polarity, model(**batch).polarity, rtol=0, atol=0)
    for names in (["c"], ["b", "default"], [], "b"):
        with pytest.raises(ConfigError, match="expected a list of one of default, b; a directory holds one adapter"):
            model.save_pretrained(tmp_path, selected_adapters=names)


def test_arguments_that_peft_would_not_take_are_named(tmp_path):
    model = tiny_model(tiny_family("llama"))
    model.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="unexpected keyword argument 'is_trainble'"):
        model.load_adapter(tmp_path, "b", is_trainble=True)
    with pytest.raises(TypeError, match="the adapter's directory comes first, and here a LlamaForCausalLM does"):
        DeepMLFModel.from_pretrained(tiny_family("llama"), tmp_path)


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"r": 2, "target_modules": ["q_proj"]}, "memory", r"LoRA on the LM \(r=2\): its text changes at every step"),
        ({"seqaug": {"p_apply": 0.2, "p_feat": 0.3}}, "memory", "SeqAug or noise on the text"),
        ({"seqaug": {"embedding_noise": 0.1}}, "disk", "SeqAug or noise on the text"),
        ({"seqaug": {"embedding_dropout": 0.1}}, "disk", "SeqAug or noise on the text"),
        ({}, "ram", "text_cache='ram': expected 'none', 'memory' or 'disk'"),
    ],
)
def test_a_cache_that_would_be_wrong_is_refused(settings, kind, message):
    model = tiny_model(tiny_family("llama"), **settings).train()
    with pytest.raises(ConfigError, match=message):
        model.enable_text_cache(kind)


def test_a_model_trained_with_seqaug_predicts_from_a_cache():
    model = tiny_model(tiny_family("llama"), seqaug={"p_apply": 1.0, "p_feat": 0.5})
    expected = model(**tiny_batch()).polarity
    model.enable_text_cache("memory")
    assert_close(model(**tiny_batch()).polarity, expected, rtol=1e-5, atol=1e-6)
    assert len(model.text_cache) == 3


def test_the_public_names_load_on_first_use():
    import deepmlf_llm

    assert deepmlf_llm.DeepMLFModel is DeepMLFModel
    assert randomise(DeepMLFModel(tiny_family("gpt2"), tiny_config())).training is False
