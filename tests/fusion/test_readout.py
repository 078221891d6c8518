"""Polarity told by the LM itself: what transformers' own logits say, in every pass, saved and merged."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close

from deepmlf_llm.adapters import files
from deepmlf_llm.backbones import load_tokenizer
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.errors import ConfigError
from deepmlf_llm.fusion.hooks import FusionState
from deepmlf_llm.fusion.verbalised import with_token_ids
from deepmlf_llm.model.peft_model import DeepMLFModel
from tests.families import tiny_batch, tiny_config, tiny_family, tiny_model

STEPS = {"bad": -3.0, "so so": 0.5, "good": 2.0}
IDS = {"bad": 41, "so so": 7, "good": 90}
TOLD = {"verbalised_steps": STEPS, "verbalised_ids": IDS}
BOTH = {"readout": "both", **TOLD}


def told_by_transformers(model):
    """The expectation over the steps from the logits of the whole vocabulary, of the whole fused decoder."""
    batch, stack, lm = tiny_batch(), model.active_stack, model.get_base_model()
    context, readers = stack.encode({name: (batch[name], batch[f"{name}_mask"]) for name in ("audio", "vision")})
    inputs = torch.cat([lm.get_input_embeddings()(batch["input_ids"]), stack.fusion_tokens(3)], dim=1)
    mask = torch.cat([batch["attention_mask"], torch.ones(3, stack.num_tokens).long()], dim=1)
    state = FusionState(stack.blocks, readers, context.mask, stack.num_tokens)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = lm(inputs_embeds=inputs, attention_mask=mask, position_ids=positions, fusion_state=state).logits[:, -1]
    likely = {label: logits[:, index].double().exp() for label, index in IDS.items()}
    return sum(likely[label] * STEPS[label] for label in STEPS) / sum(likely.values())


@torch.no_grad()
@pytest.mark.parametrize("scope", ["joint", "fusion"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])  # own head, tied, soft-capped
def test_is_what_the_full_vocabulary_says_in_every_pass(family, scope):
    model = tiny_model(tiny_family(family), ffw_scope=scope, **BOTH)
    expected = told_by_transformers(model)
    heads = tiny_model(tiny_family(family), ffw_scope=scope)
    task = heads(**tiny_batch()).polarity
    assert expected.std() > 0.01
    head_calls = []
    model.get_base_model().get_output_embeddings().register_forward_hook(lambda *_: head_calls.append(1))
    for kept in ("none", "memory", "memory"):  # apart; read into the cache; out of it
        if kept == "none" or model.fused_decoder.cache is None:
            model.enable_text_cache(kept, fusion_tokens=True)
        out = model(**tiny_batch())
        assert_close(out.verbalised_polarity.double(), expected, rtol=1e-4, atol=1e-5)
        assert_close(out.task_polarity, task, rtol=1e-4, atol=1e-5)
        assert_close(out.polarity, (out.task_polarity + out.verbalised_polarity) / 2, rtol=0, atol=1e-6)
    model.fused_decoder.text_once = False
    assert_close(model(**tiny_batch()).verbalised_polarity.double(), expected, rtol=1e-4, atol=1e-5)
    assert not head_calls, "the whole vocabulary was computed"
    alone = tiny_model(tiny_family(family), ffw_scope=scope, readout="verbalised", **TOLD)
    out = alone(**tiny_batch())
    assert alone.active_stack.heads.task is None
    assert_close(out.polarity, told_by_transformers(alone).float(), rtol=1e-4, atol=1e-5)
    assert out.task_polarity is None
    assert out.verbalised_polarity is None


def test_the_default_reads_the_heads_alone():
    model = tiny_model(tiny_family("llama"))
    out = model(**tiny_batch())
    assert out.verbalised_polarity is out.task_polarity is model.active_stack.heads.verbaliser is None
    assert list(out.losses) == ["task", "fusion", "av", "text"]


@pytest.mark.parametrize("scope", ["joint", "fusion"])
def test_the_regression_loss_of_the_expectation_trains_what_the_last_token_has_read(scope):
    model = tiny_model(tiny_family("llama"), ffw_scope=scope, readout="verbalised", **TOLD,
                       objective={"lambda_fusion": 0, "lambda_av": 0, "lambda_text": 0})  # fmt: skip
    out = model(**tiny_batch())
    assert_close(out.losses["task"], (out.polarity - tiny_batch()["labels"]).abs().mean())
    out.loss.backward()
    moved = {n for n, p in model.active_stack.named_parameters() if p.grad is not None and p.grad.count_nonzero()}
    assert {"fusion_tokens.embedding.weight", "context_projection.weight", "av_encoder.join.weight"} <= moved
    assert {f"mm_blocks.{layer}.cross_attention.gate.alpha" for layer in (1, 3)} <= moved
    both = tiny_model(tiny_family("llama"), ffw_scope=scope, **BOTH)(**tiny_batch())
    assert_close(both.losses["verbalised"], (both.verbalised_polarity - tiny_batch()["labels"]).abs().mean())
    assert_close(both.losses["task"], (both.task_polarity - tiny_batch()["labels"]).abs().mean())
    others = 0.4 * both.losses["fusion"] + 0.8 * both.losses["av"] + 0.8 * both.losses["text"]
    assert_close(both.loss, both.losses["task"] + both.losses["verbalised"] + others)


@torch.no_grad()
@pytest.mark.parametrize("readout", ["both", "verbalised"])
def test_ids_and_values_travel_and_nothing_of_the_head_does(readout, tmp_path):
    model = tiny_model(tiny_family("gpt2"), readout=readout, **TOLD)
    expected = model(**tiny_batch())
    model.save_pretrained(tmp_path / "adapter")
    config, tensors = files.read_adapter(tmp_path / "adapter")
    assert (config.verbalised_steps, config.verbalised_ids) == (STEPS, IDS)
    assert not [name for name in tensors if "verbaliser" in name]
    assert any("heads.task" in name for name in tensors) is (readout == "both")
    again = DeepMLFModel.from_pretrained(tmp_path / "adapter", base=tiny_family("gpt2"))
    assert torch.equal(again(**tiny_batch()).polarity, expected.polarity)
    again.add_adapter("plain", tiny_config())
    again.set_adapter("plain")
    assert again(**tiny_batch()).verbalised_polarity is None
    again.set_adapter("default")
    assert torch.equal(again(**tiny_batch()).polarity, expected.polarity)
    again.delete_adapter("plain")
    again.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = DeepMLFModel.from_pretrained(tmp_path / "merged", dtype="float32")
    assert merged.deepmlf_config.verbalised_ids == IDS
    assert_close(merged(**tiny_batch()).polarity, expected.polarity, rtol=1e-5, atol=1e-5)


def test_lora_on_the_lm_is_learned_through_and_on_its_head_is_refused():
    lm = tiny_family("llama")
    model = tiny_model(lm, r=2, target_modules=["q_proj"], **BOTH)
    model(**tiny_batch()).losses["verbalised"].backward()
    assert any(p.grad.count_nonzero() for n, p in model.named_parameters() if "lora_A" in n or "lora_B" in n)
    model.eject()
    with pytest.raises(ConfigError, match="readout='both' reads rows of the LM's own head, and target_modules puts"):
        tiny_model(lm, r=2, target_modules=["q_proj", "lm_head"], **BOTH)
    tiny_model(lm, r=2, target_modules=["q_proj", "lm_head"])


def test_settings_that_cannot_tell_a_polarity_are_refused():
    with pytest.raises(ConfigError, match=r"which tokens say 1, 2, .*with_token_ids\(config, tokenizer\) chooses them"):
        tiny_model(tiny_family("llama"), readout="verbalised")
    with pytest.raises(Exception, match=r"head has 96 rows; token ids \[7, 41, 96\]"):
        tiny_model(tiny_family("llama"), readout="both", verbalised_steps=STEPS, verbalised_ids={**IDS, "good": 96})
    for settings, message in (
        ({**BOTH, "num_outputs": 2}, "readout='both' predicts one polarity; num_outputs=2 needs 'heads'"),
        ({**TOLD, "readout": "verbalised", "head_base": "text"}, "head_base='text' is of the task head"),
        ({**TOLD, "readout": "verbalised", "head_reads_av": False}, "head_reads_av=false is of the task head"),
        ({**BOTH, "truncate_lm": True}, "readout='both' reads the LM's last layers"),
        (
            {**TOLD, "readout": "verbalised", "token_topology": "segregated", "modalities": {"audio": {"dim": 3}}},
            "token_topology='segregated' has groups that meet in the task head",
        ),
        ({"readout": "words"}, "readout='words': expected one of 'heads', 'verbalised', 'both'"),
        ({"verbalised_steps": {"bad": -1}}, "verbalised_steps=.*expected a mapping of two labels or more, in quotes"),
        ({"verbalised_steps": {"bad": 1, "good": 1}}, "to different polarities"),
        ({"verbalised_steps": {1: -1, 2: 1}}, "in quotes"),
        ({"verbalised_steps": STEPS}, "verbalised_steps=.*: readout='heads' says no steps"),
        ({"verbalised_steps": STEPS, "verbalised_ids": {"bad": 1, "good": 2}}, "expected the ids of the steps bad, go"),
        ({"verbalised_ids": {"bad": 1, "good": 1}}, "to different token ids"),
    ):
        with pytest.raises(ConfigError, match=message):
            DeepMLFConfig(**settings)


def test_tokens_are_chosen_for_the_tokenizer_when_the_adapter_is_made():
    tokenizer = load_tokenizer("tiny-llama")
    config = DeepMLFConfig(readout="verbalised", dataset="sims")
    chosen = with_token_ids(config, tokenizer)
    assert chosen.verbalised_ids == {str(i): tokenizer(str(i))["input_ids"][-1] for i in range(1, 8)}
    assert list(chosen.verbalised_steps.values()) == pytest.approx([-1, -2 / 3, -1 / 3, 0, 1 / 3, 2 / 3, 1])
    assert config.verbalised_ids is None
    assert with_token_ids(DeepMLFConfig(), tokenizer).verbalised_ids is None
    own = copy.deepcopy(chosen)
    own.verbalised_ids = {label: index + 1 for label, index in chosen.verbalised_ids.items()}
    assert with_token_ids(own, tokenizer) is own  # those of its training
    mosi = with_token_ids(DeepMLFConfig(readout="both"), tokenizer)
    assert mosi.verbalised_steps == {"1": -3, "2": -2, "3": -1, "4": 0, "5": 1, "6": 2, "7": 3}
    with pytest.raises(
        ConfigError, match=r"verbalised_steps: 'good' is not a single token of this tokenizer \(g o o d\)"
    ):
        with_token_ids(DeepMLFConfig(readout="both", verbalised_steps={"!": -1, "good": 1}), tokenizer)
