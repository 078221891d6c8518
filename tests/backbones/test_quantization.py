"""4-bit and 8-bit bases: an evaluation must not end training; a dequantized weight is the one that is computed with."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from deepmlf_llm.backbones import Decoder, is_quantized, keep_weights_in_place, load_base_model
from deepmlf_llm.backbones.quantization import dequantized_weight, is_packed, quantization_config
from deepmlf_llm.backbones.whole import check_finite
from deepmlf_llm.errors import BaseModelError, ConfigError
from deepmlf_llm.model.peft_model import DeepMLFModel
from tests.families import tiny_batch, tiny_config

LORA = {"r": 2, "target_modules": ["q_proj", "up_proj"]}


@pytest.fixture(scope="module")
def bases():
    return {kind: load_base_model("tiny-llama", quantization=kind, dtype="float32") for kind in ("nf4", "int8")}


@pytest.fixture
def base(request, bases):
    lm = bases[request.param]
    yield lm
    for layer in lm.model.layers:
        assert not layer._forward_hooks, "a test left hooks in the shared base"


def four_bit(lm):
    return [m for m in lm.modules() if type(m).__name__ == "Linear4bit"]


@pytest.mark.parametrize("settings", [{}, LORA])
@pytest.mark.parametrize("base", ["nf4", "int8"], indirect=True)
def test_train_evaluate_train(base, settings):
    """Some CPUs repack 4-bit weights in the first forward in eval mode: afterwards no gradient flows, silently."""
    model = DeepMLFModel(base, tiny_config(head_norm="layer", **settings))

    def gradients():
        model.train()
        model.zero_grad()
        model(**tiny_batch()).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    with torch.no_grad():  # every gradient is then non-zero from the first step on
        for name, parameter in model.named_parameters():
            if "lora" in name or "high" in name:
                parameter.add_(0.02 * torch.randn_like(parameter))
    gradients()
    model.eval()
    with torch.no_grad():
        before = model(**tiny_batch()).polarity
    after = gradients()
    dead = [name for name, gradient in after.items() if not gradient.count_nonzero()]
    assert not [name for name in dead if "heads" not in name]  # under L1 a head's two signs may cancel
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(**tiny_batch()).polarity, before)
    model.eject()


@pytest.mark.parametrize("base", ["nf4"], indirect=True)
def test_the_guard_is_on_every_layer_and_again_at_injection(base):
    assert four_bit(base)
    assert not any(layer.support_avx512bf16_for_cpu for layer in four_bit(base))
    for layer in four_bit(base):  # as in a base that somebody else has loaded
        layer.support_avx512bf16_for_cpu = True
    model = DeepMLFModel(base, tiny_config())
    assert not any(layer.support_avx512bf16_for_cpu for layer in four_bit(base))
    model.eject()


@pytest.mark.parametrize("base", ["nf4", "int8"], indirect=True)
def test_a_dequantized_weight_is_what_the_forward_computes_with(base):
    exact = any(four_bit(base))
    parts = Decoder(base).ffw_parts(1)
    for projection in parts.projections().values():
        weight = dequantized_weight(projection)
        assert (weight.dtype, weight.shape) == (torch.float32, (projection.out_features, projection.in_features))
        x = torch.randn(5, projection.in_features)
        with torch.no_grad():
            out = projection(x)
        if exact:
            assert_close(out, x @ weight.T, rtol=1e-4, atol=1e-5)
        else:  # int8 rounds the input too
            assert (out - x @ weight.T).norm() < 0.02 * out.norm()


@pytest.mark.parametrize("base", ["nf4", "int8"], indirect=True)
def test_a_copy_of_a_quantized_ffw_must_be_asked_for(base):
    with pytest.raises(ConfigError, match="say so with dequantize_copy=true, or keep ffw_weights='shared'"):
        DeepMLFModel(base, tiny_config(ffw_weights="copy"))
    model = DeepMLFModel(base, tiny_config(ffw_weights="copy", dequantize_copy=True))
    block = model.base_model.active_stack.blocks[1]
    x = torch.randn(2, 3, 64)
    with torch.no_grad():
        shared, own = base.model.layers[1].mlp(x), block.ffw(x)
    assert (shared - own).norm() < 0.05 * own.norm()
    assert {p.dtype for p in block.ffw.parameters()} == {torch.float32}
    model.eject()


@pytest.mark.cpu
def test_rows_of_a_quantized_head_are_what_it_computes_with():
    lm = load_base_model("tiny-llama", dtype="float32")
    head = bitsandbytes_linear(lm.lm_head.weight)
    lm.set_output_embeddings(head)
    weight, bias = Decoder(lm).output_rows([7, 300, 2])
    expected = head(torch.eye(64)).T  # the columns of its input are its weights
    assert_close(weight, expected[[7, 300, 2]], rtol=1e-5, atol=1e-5)
    assert bias is None


def bitsandbytes_linear(weight):
    import bitsandbytes

    head = bitsandbytes.nn.Linear4bit(weight.shape[1], weight.shape[0], bias=False, quant_type="nf4")
    head.load_state_dict({"weight": weight.detach().clone()})
    head.support_avx512bf16_for_cpu = False
    return head.to("cpu").requires_grad_(False)


def test_other_linears_are_read_as_out_by_in():
    from transformers.pytorch_utils import Conv1D

    linear, conv = torch.nn.Linear(3, 5).bfloat16(), Conv1D(5, 3)
    assert torch.equal(dequantized_weight(linear), linear.weight.float())
    assert torch.equal(dequantized_weight(conv), conv.weight.T)
    assert not is_quantized(conv)
    keep_weights_in_place(conv)


@pytest.mark.parametrize(("kind", "quant_type"), [("nf4", "nf4"), ("fp4", "fp4")])
def test_four_bit_configs(kind, quant_type):
    config = quantization_config(kind, torch.bfloat16, torch.float32)
    assert (config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == (quant_type, True)
    assert (config.bnb_4bit_compute_dtype, config.bnb_4bit_quant_storage) == (torch.bfloat16, torch.float32)
    assert quantization_config(kind, torch.bfloat16).bnb_4bit_quant_storage == torch.uint8


def test_packed_weights_stored_as_floats_are_whole_and_others_are_looked_at():
    """As ZeRO-3 needs them: their bits are no numbers of that dtype, and often NaN in it."""
    lm = load_base_model("tiny-llama", quantization="nf4", storage_dtype="float32", num_layers=1)
    packed = [weight for weight in lm.parameters() if is_packed(weight)]
    assert len(packed) == 7
    assert {weight.dtype for weight in packed} == {torch.float32}
    with torch.no_grad():
        lm.model.norm.weight[0] = torch.inf
    with pytest.raises(BaseModelError, match=r"values that are not finite in model.norm.weight$"):
        check_finite(lm, "tiny-llama")


def test_other_kinds():
    assert quantization_config("none", torch.float32) is None
    assert quantization_config("int8", torch.float32).load_in_8bit
    with pytest.raises(BaseModelError, match="quantization='gptq': expected one of 'none', 'nf4', 'fp4', 'int8'"):
        quantization_config("gptq", torch.float32)
