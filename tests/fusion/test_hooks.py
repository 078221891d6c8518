"""MM Blocks in a decoder: with gates shut it is the base model, and a refusal leaves no trace."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close

from deepmlf_llm.backbones import FAMILIES, Decoder, DecoderInterface, run_layers
from deepmlf_llm.backbones.interface import layer_output, replace_layer_output
from deepmlf_llm.errors import ConfigError, InjectionError
from deepmlf_llm.fusion.build import build_stack
from deepmlf_llm.fusion.hooks import FusionState, Injection, probe
from tests.families import FAMILY_NAMES, HEADS, LAYERS, WIDTH, tiny_batch, tiny_config, tiny_family, tiny_model


def fused_inputs(model):
    """[text ; fusion tokens] of a padded batch, its mask, and a state with real context."""
    batch, stack = tiny_batch(), model.base_model.active_stack
    decoder = model.base_model.fused.decoder
    features = {name: (batch[name], batch[f"{name}_mask"]) for name in ("audio", "vision")}
    context, readers = stack.encode(features)
    inputs = torch.cat([decoder.embeddings(batch["input_ids"]), stack.fusion_tokens(3)], dim=1)
    mask = torch.cat([batch["attention_mask"], torch.ones(3, stack.num_tokens).long()], dim=1)
    return inputs, mask, FusionState(stack.blocks, readers, context.mask, stack.num_tokens)


@torch.no_grad()
@pytest.mark.parametrize("scope", ["joint", "fusion"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_gates_shut_is_the_base_model_bit_for_bit(family, scope):
    base = tiny_family(family)
    model = tiny_model(copy.deepcopy(base), ffw_scope=scope)
    inputs, mask, state = fused_inputs(model)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = base(inputs_embeds=inputs, attention_mask=mask, position_ids=positions, output_hidden_states=True)
    lm = model.base_model.model
    with model.base_model.active_stack.gates_shut():
        found = lm(
            inputs_embeds=inputs, attention_mask=mask, position_ids=positions, output_hidden_states=True,
            fusion_state=state,
        )  # fmt: skip
    assert torch.equal(found.logits, expected.logits)
    for layer, (a, b) in enumerate(zip(found.hidden_states, expected.hidden_states, strict=True)):
        assert torch.equal(a, b), layer
    fused = run_layers(Decoder(lm), inputs, mask, fusion_state=state)
    assert not torch.allclose(fused, expected.hidden_states[-1], atol=1e-3), "gates open, the same pass must differ"
    # Text positions: the base model on the text alone, in another shape and so to tolerance.
    length = tiny_batch()["input_ids"].shape[1]
    alone = base(
        inputs_embeds=inputs[:, :length], attention_mask=mask[:, :length], position_ids=positions[:, :length]
    ).logits
    real = mask[:, :length].bool()
    assert_close(found.logits[:, :length][real], alone[real], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_injecting_changes_no_key_class_or_weight_and_ejecting_gives_the_same_object_back(family):
    base = tiny_family(family)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    classes = [type(module) for module in base.modules()]
    batch = tiny_batch()
    expected = base(batch["input_ids"]).logits
    model = tiny_model(base)
    model(**batch).loss.backward()
    assert [type(module) for module in base.modules()] == classes
    assert base.state_dict().keys() == before.keys()
    ejected = model.eject()
    assert ejected is base
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_backward_hooks")
    assert not any(getattr(module, kind) for module in base.modules() for kind in hooks)
    assert not hasattr(base, "peft_config")
    assert torch.equal(base(batch["input_ids"]).logits, expected)
    tiny_model(base)  # and it can be injected again


def state(base):
    """What ``eject`` must give back beside weights: flags, hooks, trainability."""
    flags = ("training", "gradient_checkpointing", "_gradient_checkpointing_func", "accepts_loss_kwargs")
    modules = [
        (name, module, {flag: vars(module).get(flag) for flag in flags}, list(module._forward_hooks.values()))
        for name, module in base.named_modules()
    ]
    return modules, [(name, p, p.requires_grad) for name, p in base.named_parameters()]


@pytest.mark.parametrize("settings", [{}, {"r": 2, "target_modules": "all-linear"}])
@pytest.mark.parametrize("mode", ["eval and frozen", "training", "checkpointed before"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_ejecting_after_training_with_activation_checkpointing_leaves_no_trace(family, mode, settings):
    base = tiny_family(family)
    if mode != "eval and frozen":
        base.train().requires_grad_(True)
    if mode == "checkpointed before":
        base.gradient_checkpointing_enable({"use_reentrant": False})
    before = state(base)
    model = tiny_model(base, **settings)
    for _ in range(2):  # transformers hooks the embeddings each time
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    model(**tiny_batch()).loss.backward()
    assert model.eject() is base
    assert state(base) == before
    base.eval()
    if mode != "checkpointed before":
        assert torch.equal(
            base(tiny_batch()["input_ids"]).logits, tiny_family(family)(tiny_batch()["input_ids"]).logits
        )


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("weights", ["shared", "copy"])
def test_before_training_a_blocks_ffw_is_the_lm_blocks_ffw(family, weights):
    lm = tiny_family(family)
    for r in (0, 4):
        stack = build_stack(Decoder(lm), tiny_config(ffw_weights=weights, ffw_lora_r=r))
        for index, block in stack.blocks.items():
            layer = Decoder(lm).layers[index]
            x = torch.randn(2, 5, WIDTH)
            # OPT keeps its projections in the layer itself.
            expected = layer.fc2(layer.activation_fn(layer.fc1(x))) if family == "opt" else layer.mlp(x)
            if family in ("gemma2", "gemma3_text"):
                expected = layer.post_feedforward_layernorm(expected)
            exact = weights == "shared"
            assert_close(block.ffw(x), expected, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_norms_start_as_the_lm_blocks_or_fresh(family):
    lm = tiny_family(family)
    x = 3 * torch.randn(2, 5, WIDTH) + 1
    decoder = Decoder(lm)
    for index, block in build_stack(decoder, tiny_config(norm_init="lm")).blocks.items():
        for norm in (block.attention_norm, block.ffw_norm):
            assert_close(norm(x), decoder.ffw_norm(index)(x), rtol=1e-5, atol=1e-5)
    layer_norms = ("gpt2", "gpt_neox", "opt")
    for block in build_stack(decoder, tiny_config(norm_init="fresh")).blocks.values():
        centred = x - x.mean(-1, keepdim=True) if family in layer_norms else x
        expected = centred / (centred.square().mean(-1, keepdim=True)).sqrt()
        assert_close(block.ffw_norm(x), expected, rtol=1e-4, atol=1e-4)


def test_the_stack_owns_nothing_of_the_lm():
    lm = tiny_family("gemma2")
    for weights in ("shared", "copy"):
        stack = build_stack(Decoder(lm), tiny_config(ffw_weights=weights))
        own = {tensor.data_ptr() for tensor in stack.state_dict().values()}
        assert not own & {tensor.data_ptr() for tensor in lm.state_dict().values()}
        assert all(
            tensor.dtype == torch.float32 for tensor in stack.state_dict().values() if tensor.is_floating_point()
        )


def test_sizes_follow_the_config():
    stack = build_stack(Decoder(tiny_family("llama")), tiny_config(fusion_layers="last:3", num_fusion_tokens=7))
    assert (stack.layers, stack.num_tokens) == ([1, 2, 3], 7)
    assert stack.key_value_widths == dict.fromkeys([1, 2, 3], 2 * WIDTH)
    assert stack.blocks[1].cross_attention.num_heads == HEADS
    narrow = build_stack(Decoder(tiny_family("llama")), tiny_config(gca_heads=2, gca_head_width=5))
    assert narrow.context_projection.weight.shape == (2 * 20, 12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fusion_layers": [1, LAYERS]}, rf"fusion_layers=\[1, 4\]: \[4\] not in 0..{LAYERS - 1}"),
        ({"fusion_layers": "last:5"}, "fusion_layers='last:5': this LM has 4 layers"),
        ({"gca_heads": 5}, "width=32 is not a multiple of num_heads=5"),
        (
            {"text": {"max_tokens": 126}},
            r"text.max_tokens=126 and num_fusion_tokens=3 make 129 positions; this LM has 128",
        ),
    ],
)
def test_settings_that_do_not_fit_the_decoder_leave_it_as_it_was(settings, message):
    base = tiny_family("llama").requires_grad_(True)
    expected = base(tiny_batch()["input_ids"]).logits
    with pytest.raises(ConfigError, match=message):
        tiny_model(base, **settings)
    assert untouched(base)
    assert torch.equal(base(tiny_batch()["input_ids"]).logits, expected)


def untouched(base):
    hooks = [module for module in base.modules() if module._forward_hooks or module._forward_pre_hooks]
    names = [name for name in base.state_dict() if "lora" in name or "base_layer" in name]
    return not hooks and not names and not hasattr(base, "peft_config") and all(
        parameter.requires_grad for parameter in base.parameters()
    )  # fmt: skip


def broken(base, kind):
    """A decoder that does not keep what the interface promises."""
    layer = base.model.layers[1]
    forward = type(layer).forward

    def deaf(hidden_states, fusion_state=None, **kwargs):
        return forward(layer, hidden_states, **kwargs)

    def nested(hidden_states, **kwargs):
        return (forward(layer, hidden_states, **kwargs) + 0.01 * ("fusion_state" in kwargs),)

    layer.forward = deaf if kind == "deaf" else nested
    if kind == "deaf":  # a body that hands on nothing
        body = base.model
        body_forward = type(body).forward
        body.forward = lambda fusion_state=None, **kwargs: body_forward(body, **kwargs)
    return base


@pytest.mark.parametrize("settings", [{}, {"r": 2, "target_modules": ["q_proj"]}])
@pytest.mark.parametrize(
    ("kind", "message"), [("deaf", "0 of 2 MM Blocks ran in a pass through the llama decoder"), ("nested", "differs")]
)
def test_the_probe_finds_a_decoder_that_breaks_its_promises_and_leaves_it_bare(kind, message, settings):
    base = broken(tiny_family("llama").requires_grad_(True), kind)
    if kind == "nested":
        forward = base.model.layers[2].forward
        base.model.layers[2].forward = lambda hidden_states, **kwargs: forward(layer_output(hidden_states), **kwargs)
    with pytest.raises(InjectionError, match=message):
        tiny_model(base, **settings)
    assert untouched(base)


def test_gates_open_again_after_the_probe():
    model = tiny_model(tiny_family("gpt2"))
    assert not any(
        gate.shut for block in model.base_model.active_stack.blocks.values() for gate in block.gates().values()
    )
    assert model.base_model.active_stack.training is False
    probe(model.base_model.fused.decoder, model.base_model.active_stack)


def test_attaching_twice_hooks_once():
    decoder = Decoder(tiny_family("gpt2"))
    injection = Injection(decoder)
    injection.attach()
    injection.attach()
    assert [len(layer._forward_hooks) for layer in decoder.layers] == [1] * LAYERS
    injection.detach()
    assert [len(layer._forward_hooks) for layer in decoder.layers] == [0] * LAYERS


def test_a_layers_output_is_read_in_any_form():
    from transformers.modeling_outputs import BaseModelOutput

    hidden, fused = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)
    for output in (hidden, (hidden, "cache"), BaseModelOutput(last_hidden_state=hidden)):
        assert layer_output(output) is hidden
        replaced = replace_layer_output(output, fused)
        assert type(replaced) is type(output)
        assert layer_output(replaced) is fused
    assert replace_layer_output((hidden, "cache"), fused)[1] == "cache"


def test_above_leaves_out_the_blocks_that_have_run():
    model = tiny_model(tiny_family("gpt2"))
    _, _, state = fused_inputs(model)
    assert list(state.above(1).blocks) == [3]
    assert list(state.blocks) == [1, 3]


def test_every_declared_family_is_tested():
    assert set(FAMILIES) == set(FAMILY_NAMES)
    assert all(isinstance(interface, DecoderInterface) for interface in FAMILIES.values())
