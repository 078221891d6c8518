"""Segregated fusion tokens (SeRIn): gradients flow where the mask allows and nowhere else, in every pass."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from deepmlf_llm.errors import ConfigError
from deepmlf_llm.model.peft_model import DeepMLFModel
from tests import devices, reference
from tests.families import (
    FRAMES,
    HEADS,
    LENGTHS,
    MODALITIES,
    POLARITIES,
    losses_and_gradients,
    outputs,
    randomise,
    tiny_batch,
    tiny_config,
    tiny_family,
    tiny_model,
)

SEGREGATED = {
    "token_topology": "segregated",
    "num_fusion_tokens": 5,
    "tokens_per_group": [2, 1, 2],
    "mixing_head": {"width": 8, "num_heads": 2, "num_layers": 2, "ffw_width": 6},
}
PLACES = {"audio": slice(0, 2), "vision": slice(2, 3), "joint": slice(3, 5)}
MAY_READ = {"audio": {"audio"}, "vision": {"vision"}, "joint": {"audio", "vision", "joint"}}


def built(family="llama", **settings):
    return tiny_model(tiny_family(family), **{**SEGREGATED, **settings})


def final_states(model, batch):
    """Fusion tokens before the heads [b x n x d]."""
    seen = []
    handle = model.active_stack.heads.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(**batch)
    handle.remove()
    return seen[0]


def jacobian_is_zero(states, given):
    """Per entry of ``given``: no element of ``states`` moves with it. Gradients of random sums: exact zeros only where
    every term is zero."""
    weights = torch.randn(3, *states.shape)
    gradients = [torch.autograd.grad((w * states).sum(), given, retain_graph=True)[0] for w in weights]
    return (torch.stack(gradients) == 0).all(dim=0)


@pytest.mark.parametrize("way", ["apart", "whole"])
@pytest.mark.parametrize("scope", ["joint", "fusion"])
def test_jacobians_are_zero_where_the_mask_forbids(scope, way):
    model = built(ffw_scope=scope)
    model.fused_decoder.text_once = way == "apart"
    batch = {name: x[:1] for name, x in tiny_batch().items()}  # the row that has both modalities
    for name in MODALITIES:
        batch[name] = batch[name].clone().requires_grad_()
    learned = model.active_stack.fusion_tokens.embedding.weight
    states = final_states(model, batch)
    for group, place in PLACES.items():
        for other, there in PLACES.items():
            zero = jacobian_is_zero(states[:, place], learned)[there]
            assert zero.all() if other not in MAY_READ[group] else not zero.any(), (group, other)
        for name in MODALITIES:
            zero = jacobian_is_zero(states[:, place], batch[name])[batch[f"{name}_mask"]]
            assert zero.all() if name not in MAY_READ[group] else not zero.any(), (group, name)


def test_pooled_tokens_do_read_each_other():
    """What the test above would say if the setting did nothing."""
    model = tiny_model(tiny_family("llama"), num_fusion_tokens=5)
    batch = {name: x[:1] for name, x in tiny_batch().items()}
    batch["audio"] = batch["audio"].requires_grad_()
    states = final_states(model, batch)
    learned = model.active_stack.fusion_tokens.embedding.weight
    assert not jacobian_is_zero(states[:, PLACES["vision"]], learned)[PLACES["audio"]].any()
    assert not jacobian_is_zero(states[:, PLACES["vision"]], batch["audio"]).any()


@pytest.mark.parametrize(("family", "scope"), [("llama", "joint"), ("gpt2", "fusion")])
def test_a_group_equals_the_equations_with_its_own_modality_alone(family, scope):
    """The first group stands right behind the text, so the paper's formulas make it: its tokens, its frames, normed."""
    lm = tiny_family(family)
    model = tiny_model(lm, **SEGREGATED, ffw_scope=scope, ffw_lora_alpha=6.0).double()
    batch = {name: x.double() if x.is_floating_point() else x for name, x in tiny_batch().items()}
    states = final_states(model, batch).detach()
    formulas = {"llama": reference.reference_llama, "gpt2": reference.reference_gpt2}[family](lm)
    settings = reference.Settings(heads=HEADS, ffw_scope=scope, lora_scale=6.0 / 4, av_heads=3, max_frames=5)
    w = reference.weights_of(model.active_stack)
    key_values = dict(zip((1, 3), w["context_projection.weight"].chunk(2), strict=True))
    for row, length in enumerate(LENGTHS):
        windows = min(5, max(FRAMES[name][row] for name in MODALITIES))
        frames = batch["audio"][row, : FRAMES["audio"][row]]
        heard = torch.zeros(0, 12).double()
        if len(frames):
            encoder = reference.under(w, "av_encoder.encoders.audio.")
            encoded = reference.encode_modality(reference.pool(frames, windows), encoder, 3)
            heard = reference.layer_norm(encoded, w, "topology.norms.audio", 1e-5)
        ids = batch["input_ids"][row, -length:]
        hidden = formulas.place(torch.cat([formulas.embed(ids), w["fusion_tokens.embedding.weight"][:2]]))
        for index in range(formulas.layers):
            hidden = formulas.layer(index, hidden)
            if index in key_values:
                at = reference.under(w, f"mm_blocks.{index}.")
                parts = reference.mm_block(
                    formulas, index, hidden[:length], hidden[length:], heard, at, key_values[index], settings
                )
                hidden = torch.cat(parts)
        assert_close(states[row, :2], formulas.final(hidden)[length:], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        *((family, {}) for family in ("llama", "mistral", "gemma2", "gpt2", "opt")),
        ("llama", {"fusion_entry": "first_block"}),
        ("gpt2", {"freeze_fusion_tokens": True, "fusion_layers": [1, 2], "truncate_lm": True}),
    ],
)
@pytest.mark.parametrize("scope", ["joint", "fusion"])
def test_three_passes_are_one(family, settings, scope):
    gamma = 0.5 if scope == "joint" and not settings else 0.0
    model = built(family, ffw_scope=scope, objective={"gamma": gamma}, **settings)
    batch = tiny_batch()
    apart, apart_gradients = losses_and_gradients(model, **batch)
    model.enable_text_cache("memory")
    losses_and_gradients(model, **batch)
    kept, kept_gradients = losses_and_gradients(model, **batch)
    model.fused_decoder.text_once = False
    whole, whole_gradients = losses_and_gradients(model, **batch)
    for name, expected in whole.items():
        assert_close(apart[name], expected, rtol=1e-4, atol=1e-5, msg=f"apart: {name}")
        assert_close(kept[name], expected, rtol=1e-4, atol=1e-5, msg=f"kept: {name}")
    for name, expected in whole_gradients.items():
        assert expected.isfinite().all(), name
        assert expected.count_nonzero() or not ("topology" in name or "mixing" in name), name
        assert_close(apart_gradients[name], expected, rtol=1e-3, atol=1e-4, msg=f"apart: {name}")
        assert_close(kept_gradients[name], expected, rtol=1e-3, atol=1e-4, msg=f"kept: {name}")


@pytest.fixture(scope="module", params=["joint", "fusion"])
def model(request):
    return built("mistral", ffw_scope=request.param)


def test_neither_padding_nor_the_rest_of_a_batch_changes_anything(model):
    expected = outputs(model, **tiny_batch())
    for side, padding in (("right", 0), ("left", 5), ("right", 3)):
        found = outputs(model, **tiny_batch(side, padding))
        for name in POLARITIES:
            assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5, msg=f"{side} {padding}: {name}")
    for row in range(3):
        alone = outputs(model, **{name: x[row : row + 1] for name, x in tiny_batch().items()})
        for name in POLARITIES:
            assert_close(alone[name], expected[name][row : row + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("present", [(), ("audio",), ("vision",)])
def test_what_is_absent_adds_nothing_to_its_group(model, present):
    batch = {
        name: x for name, x in tiny_batch().items() if name.split("_mask")[0] not in set(MODALITIES) - set(present)
    }
    updates = []
    handles = [
        block.cross_attention.register_forward_hook(lambda m, a, out: updates.append(out))
        for block in model.active_stack.blocks.values()
    ]
    out = model(**batch)
    for handle in handles:
        handle.remove()
    heard = {name: torch.tensor(FRAMES[name]) > 0 for name in present}
    heard["joint"] = torch.stack([torch.zeros(3).bool(), *heard.values()]).any(dim=0)
    for update in updates:
        for group, place in PLACES.items():
            expected = heard.get(group, torch.zeros(3).bool())
            assert (update[:, place].flatten(1).count_nonzero(dim=1) > 0).tolist() == expected.tolist(), group
    out.loss.backward()
    assert out.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    model.zero_grad()


def test_one_modality_has_its_group_and_the_joint_one():
    model = built(modalities={"audio": {"dim": 3}}, num_fusion_tokens=4, tokens_per_group=None)
    batch = {name: x for name, x in tiny_batch().items() if "vision" not in name}
    assert model.active_stack.topology.sizes == (2, 2)
    states = final_states(model, batch)
    learned = model.active_stack.fusion_tokens.embedding.weight
    assert jacobian_is_zero(states[:, :2], learned)[2:].all()
    assert not jacobian_is_zero(states[:, 2:], learned).any()


def test_kept_fusion_tokens_are_not_those_of_another_topology():
    """Two adapters that start from the same tokens, of which one keeps them apart."""
    model, batch = built(ffw_scope="fusion", fusion_layers=[2, 3]), tiny_batch()
    model.add_adapter("pooled", tiny_config(ffw_scope="fusion", fusion_layers=[2, 3], num_fusion_tokens=5))
    tokens = [model.base_model.deepmlf[name].fusion_tokens.embedding.weight for name in ("default", "pooled")]
    with torch.no_grad():
        tokens[1].copy_(tokens[0])
    expected = {}
    for name in ("default", "pooled"):
        model.set_adapter(name)
        expected[name] = outputs(model, **batch)["polarity"]
    model.enable_text_cache("memory", fusion_tokens=True)
    for name in ("pooled", "default", "default", "pooled"):
        model.set_adapter(name)
        assert_close(outputs(model, **batch)["polarity"], expected[name], rtol=1e-4, atol=1e-5)


def test_packed_kernels_keep_their_padding_and_the_result():
    model = built(ffw_scope="joint", r=2, target_modules=["q_proj"])
    expected = outputs(model, **tiny_batch())
    model.get_base_model().set_attn_implementation("varlen")
    for name, x in outputs(model, **tiny_batch()).items():
        assert_close(x, expected[name], rtol=1e-4, atol=1e-5)


def test_a_kernel_without_masks_is_refused_before_anything_is_injected():
    lm = tiny_family("llama")
    lm.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ConfigError, match=r"'flash_attention_2' takes no mask .* expected one of 'sdpa', 'eager'"):
        DeepMLFModel(lm, tiny_config(**SEGREGATED))


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"r": 2, "target_modules": "all-linear", "ffw_weights": "copy"}], ids=str)
def test_saved_and_merged_models_predict_the_same(settings, tmp_path):
    model, batch = randomise(built(**settings)), tiny_batch()
    expected = model(**batch).polarity
    model.save_pretrained(tmp_path / "adapter")
    again = DeepMLFModel.from_pretrained(tmp_path / "adapter", base=tiny_family("llama"))
    noise = 0 if devices.chosen() == "cpu" else 1e-6  # one product, two orders of adding, on CUDA
    assert (again(**batch).polarity - expected).abs().max() <= noise
    merged = model.merge_and_unload()
    assert (merged(**batch).polarity - expected).abs().max() < 1e-5
    merged.save_pretrained(tmp_path / "merged")
    loaded = DeepMLFModel.from_pretrained(tmp_path / "merged", dtype="float32")
    assert (loaded(**batch).polarity - merged(**batch).polarity).abs().max() <= noise


def test_pooled_adapters_have_none_of_it():
    names = set(tiny_model(tiny_family("llama")).active_stack.state_dict())
    more = set(built().active_stack.state_dict()) - names
    assert {name.split(".")[0] for name in more} == {"topology", "heads"}
    assert not any("topology" in name or "mixing" in name for name in names)


def test_activation_checkpointing_changes_nothing():
    model = built(ffw_scope="joint")
    batch = tiny_batch()
    model.train()
    for module in model.active_stack.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    plain, expected = losses_and_gradients(model, **batch)
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    found, gradients = losses_and_gradients(model, **batch)
    assert_close(found["task"], plain["task"])
    for name, gradient in gradients.items():
        assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)
