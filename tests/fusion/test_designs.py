"""Designs of the method beside the paper's: each against its formula, and in every way that a model runs."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from deepmlf_llm.errors import ConfigError
from deepmlf_llm.model.peft_model import DeepMLFModel
from deepmlf_llm.modules import FusionStack
from deepmlf_llm.modules.context_reading import AbsorbedKeyValues, KeyValues
from tests import reference
from tests.families import FRAMES, HEADS, LENGTHS, MODALITIES, WIDTH, tiny_batch, tiny_config, tiny_family, tiny_model

FORMULAS = {"llama": reference.reference_llama, "gpt2": reference.reference_gpt2}
TEXT_ALONE = {"modalities": {}}
NARROW = {"width": 6, "num_layers": 2, "num_heads": 3, "ffw_width": 16, "max_frames": 5, "dropout": 0.0}
"""So narrow that on a CPU MM Blocks read Z itself (modules/context_reading.py)."""
DESIGNS = {
    "text alone": TEXT_ALONE,
    "text alone, text once": {**TEXT_ALONE, "ffw_scope": "fusion"},
    "text queries": {"gca_queries": "text"},
    "text queries, FFW over tokens": {"gca_queries": "text", "ffw_scope": "fusion"},
    "both query, no FFW": {"gca_queries": "both", "ffw_scope": "none"},
    "no FFW": {"ffw_scope": "none"},
    "gates per channel": {"gate_per": "channel", "gate": "tanh"},
    "onto the text head": {"head_base": "text", "ffw_scope": "fusion"},
    "every layer": {"fusion_layers": "from:0"},
    "no AV context in the task head": {"head_reads_av": False},
    "a narrow context": {"av_encoder": NARROW},
    "a narrow context, FFW over tokens": {"av_encoder": NARROW, "ffw_scope": "fusion"},
}
WITH_OTHERS = {
    "text queries from where tokens enter": {"gca_queries": "text", "fusion_entry": "first_block"},
    "text alone, frozen tokens": {**TEXT_ALONE, "ffw_scope": "fusion", "freeze_fusion_tokens": True},
}
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


@pytest.fixture(params=[*DESIGNS, *WITH_OTHERS])
def design(request):
    return {**DESIGNS, **WITH_OTHERS}[request.param]


@pytest.mark.parametrize("family", FORMULAS)
@pytest.mark.parametrize("name", DESIGNS)
def test_equals_its_equations(name, family):
    model = tiny_model(tiny_family(family), **DESIGNS[name]).double()
    config, batch = model.deepmlf_config, tiny_batch()
    names = ("ffw_scope", "gate", "gca_queries", "head_base", "head_reads_av")
    settings = reference.Settings(
        heads=HEADS, lora_scale=16.0 / 4, av_heads=3, max_frames=5, **{name: getattr(config, name) for name in names}
    )
    rows = [
        reference.deepmlf(
            FORMULAS[family](model.get_base_model()),
            batch["input_ids"][row, -length:],
            {name: batch[name][row, : FRAMES[name][row]].double() for name in MODALITIES},
            reference.weights_of(model.active_stack),
            settings,
        )
        for row, length in enumerate(LENGTHS)
    ]
    found = outputs(model)
    expected = {
        "polarity": [row.task[0] for row in rows],
        "fusion_polarity": [row.fusion.mean() for row in rows],
        "text_polarity": [row.text_polarity[0] for row in rows],
        "av_polarity": [None if row.av is None else row.av[0] for row in rows],
    }
    assert_same(found, {name: torch.stack(x) for name, x in expected.items() if x[0] is not None})


def test_text_alone_makes_no_module_that_hears_or_sees():
    heard, alone = (tiny_model(tiny_family("gpt2"), **settings) for settings in ({}, TEXT_ALONE))
    before, names = ({name for name, _ in model.active_stack.named_parameters()} for model in (heard, alone))
    parts = ("av_encoder.", "context_projection.", "heads.av.", "cross_attention.", "attention_norm.")
    assert names == {name for name in before if not any(part in name for part in parts)}
    assert alone.gate_values().keys() == {"layer 1", "layer 3"}
    assert {*alone.gate_values()["layer 1"]} == {"ffw"}
    out = alone(**batch_of(alone))
    assert out.av_polarity is None
    assert out.losses.keys() == {"task", "fusion", "text"}
    with pytest.raises(ConfigError, match=r"forward got 'audio': this adapter reads text alone \(modalities=\{\}\)"):
        alone(**tiny_batch())


def test_mm_blocks_without_ffw_make_no_module_of_it():
    paper, bare = (tiny_model(tiny_family("gpt2"), **settings) for settings in ({}, {"ffw_scope": "none"}))
    before, names = ({name for name, _ in model.active_stack.named_parameters()} for model in (paper, bare))
    parts = (".ffw.", ".ffw_norm.", ".ffw_gate.")
    assert names == {n for n in before if n.startswith("av_encoder.") or not any(part in n for part in parts)}
    assert {*bare.gate_values()["layer 1"]} == {"gca"}


@pytest.mark.parametrize("scope", ["fusion", "none"])
def test_the_text_hears_only_where_it_queries(scope):
    for queries, hears in (("tokens", False), ("text", True), ("both", True)):
        model = tiny_model(tiny_family("llama"), ffw_scope=scope, gca_queries=queries)
        with torch.no_grad():
            one, other = model(**tiny_batch()), model(**{**tiny_batch(), "audio": 1 - tiny_batch()["audio"]})
        assert torch.equal(one.text_polarity[1], other.text_polarity[1]), "the middle row has no modality"
        assert torch.equal(one.text_polarity, other.text_polarity) is not hears
        assert not torch.equal(one.polarity, other.polarity)


def test_gates_start_where_they_are_told_to():
    model = DeepMLFModel(tiny_family("llama"), tiny_config(gate_init=1.5, gca_gate_init=-4.0))
    assert model.gate_values()["layer 3"] == pytest.approx(
        {"gca": 1 / (1 + math.exp(4)), "ffw": 1 / (1 + math.exp(-1.5))}
    )
    model = DeepMLFModel(tiny_family("llama"), tiny_config(gate_init=-1, gate="tanh", gate_per="channel"))
    assert model.gate_values()["layer 3"] == pytest.approx({"gca": math.tanh(-1), "ffw": math.tanh(-1)})
    for block in model.active_stack.blocks.values():
        assert {gate.alpha.shape for gate in block.gates().values()} == {(WIDTH,)}


def test_onto_the_text_head_a_prediction_starts_as_what_the_text_says():
    torch.manual_seed(0)
    onto, paper = (DeepMLFModel(tiny_family("llama"), tiny_config(head_base=base)).eval() for base in ("text", "none"))
    found = outputs(onto)
    assert torch.equal(found["polarity"], found["text_polarity"])
    assert not torch.isclose(outputs(paper)["polarity"], outputs(paper)["text_polarity"]).any()


def test_with_shut_gates_audio_reaches_the_prediction_through_the_head_alone():
    """Unless it does not read the AV context: then nothing heard or seen changes a prediction."""
    for reads in (True, False):
        model = tiny_model(tiny_family("llama"), head_reads_av=reads)
        for block in model.active_stack.blocks.values():
            block.gates()["gca"].alpha.data.fill_(-1e4)
        found, others = outputs(model), outputs(model, audio=2 * tiny_batch()["audio"])
        assert torch.equal(found["text_polarity"], others["text_polarity"])
        assert not torch.equal(found["av_polarity"], others["av_polarity"])
        assert torch.equal(found["polarity"], others["polarity"]) != reads


def test_onto_the_text_head_the_task_loss_leaves_the_text_head_alone():
    model = tiny_model(tiny_family("llama"), head_base="text")
    losses, heads = model(**tiny_batch()).losses, model.active_stack.heads
    assert torch.autograd.grad(losses["task"], heads.text.weight, retain_graph=True, allow_unused=True) == (None,)
    (gradient,) = torch.autograd.grad(losses["text"], heads.text.weight)
    assert gradient.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ffw_scope": "none"}, "modalities: none, with ffw_scope='none': MM Blocks would hold nothing"),
        (
            {"ffw_scope": "fusion", "gca_queries": "text", "objective": {"gamma": 1}},
            "modalities: none, with objective.gamma > 0, ffw_scope='fusion' and no LM LoRA",
        ),
    ],
)
def test_text_alone_with_nothing_left_to_do_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        tiny_model(tiny_family("llama"), **settings, **TEXT_ALONE)


@pytest.mark.cpu
@pytest.mark.parametrize(("encoder", "reader"), [({}, KeyValues), ({"av_encoder": NARROW}, AbsorbedKeyValues)])
def test_a_narrow_context_is_read_itself(encoder, reader):
    model, batch = tiny_model(tiny_family("llama"), **encoder), tiny_batch()
    given = {name: (batch[name], batch[f"{name}_mask"]) for name in MODALITIES}
    assert {type(found) for found in model.active_stack.encode(given)[1].values()} == {reader}


@pytest.mark.parametrize("absorbs", [False, True])
def test_on_either_way_a_gradient_reaches_the_input_of_the_projection(absorbs, monkeypatch):
    """Where it does not, DeepSpeed keeps the gathered weights of ZeRO-3, and ranks may differ in the way."""
    monkeypatch.setattr(FusionStack, "_absorbs", lambda stack, frames: absorbs)
    model, inputs = tiny_model(tiny_family("llama")).train(), []
    model.active_stack.context_projection.register_forward_pre_hook(lambda module, args: inputs.extend(args))
    model(**batch_of(model))
    with torch.no_grad():
        model(**batch_of(model))
    assert [x.requires_grad for x in inputs] == [True, False]


def losses_and_gradients(model):
    model.zero_grad()
    out = model(**batch_of(model))
    out.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    return {**out.losses, "polarity": out.polarity}, gradients


def test_every_pass_and_every_cache_gives_the_same_values_and_gradients(design):
    model = tiny_model(tiny_family("gpt2"), **design)
    found = {"apart": losses_and_gradients(model)}
    model.enable_text_cache("memory", fusion_tokens=True)
    losses_and_gradients(model)
    found["kept"] = losses_and_gradients(model)
    predicted = [outputs(model) for _ in range(2)][1]
    below = (
        model.deepmlf_config.fusion_entry == "embedding"
    )  # tokens that enter at the first MM Block have nothing kept
    assert (len(model.text_cache), len(model.fused_decoder.token_cache)) == (3, 3 * below)
    model.enable_text_cache("none")
    model.fused_decoder.text_once = False
    values, gradients = losses_and_gradients(model)
    assert_same(predicted, outputs(model))
    for way, (others, other_gradients) in found.items():
        for name, expected in values.items():
            assert_close(others[name], expected, **CLOSE, msg=f"{way}: {name}")
        for name, expected in gradients.items():
            scale = float(expected.abs().max()) + 1e-3
            assert_close(other_gradients[name], expected, rtol=1e-3, atol=1e-4 * scale, msg=f"{way}: {name}")


def test_layers_that_are_computed_again_give_the_same_gradients(design):
    settings = {"head_norm": "layer", "av_encoder": {"width": 12, "num_heads": 3, "num_layers": 1, "dropout": 0.0}}
    model = tiny_model(tiny_family("llama"), **{**settings, **design}).train()
    model.fused_decoder.text_once = False
    _, kept = losses_and_gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    _, again = losses_and_gradients(model.train())
    for name, expected in kept.items():
        assert_close(again[name], expected, rtol=1e-4, atol=1e-6, msg=name)


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
        lm = tiny_family("llama").to(dtype)
        model = tiny_model(lm, head_norm="layer", objective={"loss": "mse"}, **design).train()
        model(**batch_of(model)).loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert not [name for name, g in gradients.items() if g is None or not g.isfinite().all() or not g.any()]


def test_several_adapters_of_different_design_predict_each_as_alone(design):
    lm = tiny_family("llama")
    model = tiny_model(lm)
    plain = outputs(model)
    model.add_adapter("other", tiny_config(**design))
    model.eval().set_adapter("other")
    changed = outputs(model)
    model.set_adapter("default")
    assert_same(outputs(model), plain)
    assert changed["polarity"].isfinite().all()
