"""Designs of the method beside the paper's: each against its formula, and in every way that a model runs."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from deepmlf_llm.errors import ConfigError
from deepmlf_llm.model.peft_model import DeepMLFModel
from tests import reference
from tests.families import FRAMES, HEADS, LENGTHS, MODALITIES, tiny_batch, tiny_config, tiny_family, tiny_model

FORMULAS = {"llama": reference.reference_llama, "gpt2": reference.reference_gpt2}
TEXT_ALONE = {"modalities": {}}
DESIGNS = {"text alone": TEXT_ALONE}
SCOPES = ("joint", "fusion")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def batch_of(model, **changes):
    """The features that the model reads, of the usual batch."""
    unread = {
        f"{name}{end}" for name in MODALITIES.keys() - model.deepmlf_config.modalities.keys() for end in ("", "_mask")
    }
    return {name: x for name, x in tiny_batch(**changes).items() if name not in unread}


def outputs(model, **changes):
    """What all heads say."""
    with torch.no_grad():
        out = model(**batch_of(model, **changes))
    heads = ("polarity", "fusion_polarity", "text_polarity", "av_polarity")
    return {name: out[name] for name in heads if out.get(name) is not None}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert_close(found[name], x, **CLOSE, msg=name)


def by_formula(model, family, settings=None):
    """What the equations of the paper, as the design changes them, give for each row of the usual batch."""
    batch = tiny_batch()
    return [
        reference.deepmlf(
            FORMULAS[family](model.get_base_model()),
            batch["input_ids"][row, -length:],
            {name: batch[name][row, : FRAMES[name][row]].double() for name in MODALITIES},
            reference.weights_of(model.active_stack),
            reference.Settings(
                heads=HEADS,
                lora_scale=16.0 / 4,
                av_heads=3,
                max_frames=5,
                ffw_scope=model.deepmlf_config.ffw_scope,
                gate=model.deepmlf_config.gate,
                **(settings or {}),
            ),
        )
        for row, length in enumerate(LENGTHS)
    ]


@pytest.fixture(params=[(name, scope) for name in DESIGNS for scope in SCOPES], ids=" ".join)
def design(request):
    name, scope = request.param
    return {"ffw_scope": scope, **DESIGNS[name]}


@pytest.mark.parametrize("family", FORMULAS)
@pytest.mark.parametrize("scope", SCOPES)
def test_text_alone_equals_the_equations_without_a_context(scope, family):
    model = tiny_model(tiny_family(family), ffw_scope=scope, **TEXT_ALONE)
    rows = by_formula(model, family)
    out = model(**batch_of(model))
    assert out.av_polarity is None
    assert out.losses.keys() == {"task", "fusion", "text"}
    for found, expected in (
        (out.polarity, [row.task[0] for row in rows]),
        (out.fusion_polarity, [row.fusion.mean() for row in rows]),
        (out.text_polarity, [row.text_polarity[0] for row in rows]),
    ):
        assert_close(found, torch.stack(expected).float(), **CLOSE)


def test_text_alone_makes_no_module_that_hears_or_sees():
    heard, alone = (tiny_model(tiny_family("gpt2"), **settings) for settings in ({}, TEXT_ALONE))
    before, names = ({name for name, _ in model.active_stack.named_parameters()} for model in (heard, alone))
    parts = ("av_encoder.", "context_projection.", "heads.av.", "cross_attention.", "attention_norm.")
    assert names == {name for name in before if not any(part in name for part in parts)}
    assert alone.gate_values().keys() == {"layer 1", "layer 3"}
    assert {*alone.gate_values()["layer 1"]} == {"ffw"}
    with pytest.raises(ConfigError, match=r"forward got 'audio': this adapter reads text alone \(modalities=\{\}\)"):
        alone(**tiny_batch())


def losses_and_gradients(model):
    model.zero_grad()
    out = model(**batch_of(model))
    out.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    return {**out.losses, "polarity": out.polarity}, gradients


@pytest.mark.parametrize("family", FORMULAS)
def test_every_pass_and_every_cache_gives_the_same_values_and_gradients(design, family):
    model = tiny_model(tiny_family(family), **design)
    found = {"apart": losses_and_gradients(model)}
    model.enable_text_cache("memory", fusion_tokens=True)
    losses_and_gradients(model)
    found["kept"] = losses_and_gradients(model)
    predicted = [outputs(model) for _ in range(2)][1]
    assert len(model.text_cache) == len(model.fused_decoder.token_cache) == 3
    model.enable_text_cache("none")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    found["recomputed"] = losses_and_gradients(model.train())
    model.gradient_checkpointing_disable()
    model.eval().fused_decoder.text_once = False
    values, gradients = losses_and_gradients(model)
    assert_same(predicted, outputs(model))
    for way, (others, other_gradients) in found.items():
        if way == "recomputed":  # BatchNorm trains there
            assert all(gradient.isfinite().all() for gradient in other_gradients.values())
            continue
        for name, expected in values.items():
            assert_close(others[name], expected, **CLOSE, msg=f"{way}: {name}")
        for name, expected in gradients.items():
            scale = float(expected.abs().max()) + 1e-3
            assert_close(other_gradients[name], expected, rtol=1e-3, atol=1e-4 * scale, msg=f"{way}: {name}")


def test_rows_without_padding_and_rows_with_more_of_it_give_the_same(design):
    model = tiny_model(tiny_family("llama"), **design)
    expected = outputs(model)
    assert_same(outputs(model, side="right", padding=3), expected)
    model.get_base_model().set_attn_implementation("varlen")
    assert_same(outputs(model), expected)
    model.fused_decoder.text_once = False
    assert_same(outputs(model), expected)


def test_files_and_merging_keep_the_predictions(design, tmp_path):
    lm = tiny_family("llama")
    model = tiny_model(lm, r=2, target_modules=["q_proj"], **design)
    expected = outputs(model)
    model.save_pretrained(tmp_path)
    assert_same(outputs(DeepMLFModel.from_pretrained(tmp_path, tiny_family("llama"))), expected)
    merged = model.merge_and_unload()
    assert_same(outputs(merged), expected)
    merged.save_pretrained(tmp_path / "merged")
    assert_same(outputs(DeepMLFModel.from_pretrained(tmp_path / "merged")), expected)


def test_all_that_is_trained_learns_in_bf16_too(design):
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_model(tiny_family("llama").to(dtype), **design).train()
        model(**batch_of(model)).loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert not [name for name, g in gradients.items() if g is None or not g.isfinite().all() or not g.any()]


def test_several_adapters_of_different_design_predict_each_as_alone(design):
    lm = tiny_family("llama")
    model = tiny_model(lm)
    plain = outputs(model)
    model.add_adapter("other", tiny_config(**design))
    model.set_adapter("other")
    changed = outputs(model)
    model.set_adapter("default")
    assert_same(outputs(model), plain)
    assert changed["polarity"].isfinite().all()
