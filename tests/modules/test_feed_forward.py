"""The LM block's FFW, shared or copied: exact at the start, LoRA where it belongs, no tie that a state dict sees."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

from deepmlf_llm.modules import FeedForward, FFWParts
from deepmlf_llm.modules.feed_forward import LowRank, projection_widths
from tests.reference import feed_forward, gelu_tanh, silu

D, HIDDEN = 6, 10


def swiglu():
    gate, up, down = (
        nn.Linear(D, HIDDEN, bias=False),
        nn.Linear(D, HIDDEN, bias=False),
        nn.Linear(HIDDEN, D, bias=False),
    )
    return FFWParts(up, down, nn.SiLU(), gate=gate)


def biased_conv():
    parts = FFWParts(
        Conv1D(HIDDEN, D), Conv1D(D, HIDDEN), nn.GELU(approximate="tanh"), dequantized=lambda p: p.weight.T
    )
    for projection in (parts.up, parts.down):
        nn.init.normal_(projection.bias)
        nn.init.normal_(projection.weight)
    return parts


def fused():
    return FFWParts(
        nn.Linear(D, 2 * HIDDEN), nn.Linear(HIDDEN, D), nn.SiLU(), fused_gate=True, post_norm=nn.LayerNorm(D)
    )


FORMS = {"swiglu": swiglu, "conv": biased_conv, "fused": fused}


def matrices(parts, ffw):
    """Role -> (weight, bias) of what ``ffw`` computes, LoRA folded in, by hand."""
    out = {}
    for role, projection in parts.projections().items():
        weight = projection.weight.T if isinstance(projection, Conv1D) else projection.weight
        if role in ffw.ffw_lora:
            lora = ffw.ffw_lora[role]
            weight = weight + lora.scale * lora.high.weight @ lora.low.weight
        out[role] = (weight, projection.bias)
    if parts.fused_gate:
        (weight, bias), half = out.pop("up"), HIDDEN
        out |= {"gate": (weight[:half], bias[:half]), "up": (weight[half:], bias[half:])}
    return out


def double(parts):
    for module in (*parts.projections().values(), parts.post_norm):
        if module is not None:
            module.double()
    return parts


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_lora_belongs_on_the_projections_before_activation_and_product(form, learned):
    parts = double(FORMS[form]())
    ffw = FeedForward(parts, "shared", r=3, alpha=6.0).double()
    if learned:
        for lora in ffw.ffw_lora.values():
            nn.init.normal_(lora.high.weight)
    x = torch.randn(2, 3, D).double()
    activation = gelu_tanh if form == "conv" else silu
    expected = feed_forward(x, matrices(parts, ffw), activation)
    if parts.post_norm is not None:
        expected = parts.post_norm(expected)
    assert_close(ffw(x), expected)
    ffw.take_ownership()
    assert {p.dtype for p in ffw.parameters()} == {torch.float64}
    assert_close(ffw(x), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("form", FORMS)
def test_a_copy_is_its_own(form):
    parts = FORMS[form]()
    ffw = FeedForward(parts, "copy")
    shared = FeedForward(parts, "shared", r=0)
    x = torch.randn(2, 3, D)
    assert_close(ffw(x), shared(x), rtol=1e-5, atol=1e-5)
    before = ffw(x)
    with torch.no_grad():
        for projection in parts.projections().values():
            projection.weight.zero_()
    assert torch.equal(ffw(x), before)
    biases = {f"own.{role}.bias" for role, p in parts.projections().items() if p.bias is not None}
    weights = {f"own.{role}.weight" for role in parts.projections()}
    assert {name for name, p in ffw.named_parameters() if p.requires_grad} == weights | biases


def test_shared_modules_never_enter_the_state_dict_and_stay_frozen():
    parts = swiglu()
    for projection in parts.projections().values():
        projection.requires_grad_(False)
    ffw = FeedForward(parts, r=2)
    assert set(ffw.state_dict()) == {
        f"ffw_lora.{role}.{part}.weight" for role in ("gate", "up", "down") for part in ("low", "high")
    }
    assert not FeedForward(parts, r=0).state_dict()
    ffw(torch.randn(1, D)).sum().backward()
    assert all(projection.weight.grad is None for projection in parts.projections().values())
    assert ffw.ffw_lora["down"].high.weight.grad.count_nonzero()


def test_a_deep_copy_of_both_shares_between_the_copies():
    holder = nn.Module()
    holder.parts_up = nn.Linear(D, HIDDEN)
    holder.down = nn.Linear(HIDDEN, D)
    holder.ffw = FeedForward(FFWParts(holder.parts_up, holder.down, nn.ReLU()), r=0)
    twin = copy.deepcopy(holder)
    with torch.no_grad():
        twin.down.weight.zero_()
        twin.down.bias.zero_()
    x = torch.randn(1, D)
    assert not twin.ffw(x).count_nonzero()
    assert holder.ffw(x).count_nonzero()


def test_lora_runs_in_fp32_beside_a_bf16_lm(device):
    parts = swiglu()
    for projection in parts.projections().values():
        projection.bfloat16()
    ffw = FeedForward(parts, r=2)
    assert all(p.dtype == torch.float32 for p in ffw.parameters())
    with torch.autocast(device, dtype=torch.bfloat16):  # as an MM Block calls it
        assert ffw(torch.randn(2, D)).dtype == torch.bfloat16


def test_low_rank_delta_and_scale():
    lora = LowRank(D, HIDDEN, r=4, alpha=2.0, dropout=0.0)
    assert not lora(torch.randn(3, D)).count_nonzero()
    nn.init.normal_(lora.high.weight)
    x = torch.randn(3, D)
    assert_close(lora(x), x @ lora.delta().T)
    assert_close(lora.delta(), 0.5 * lora.high.weight @ lora.low.weight)


def test_widths_of_every_kind_of_projection():
    assert projection_widths(nn.Linear(D, HIDDEN)) == (D, HIDDEN)
    assert projection_widths(Conv1D(HIDDEN, D)) == (D, HIDDEN)


@pytest.mark.parametrize("weights", ["copy", "shared"])
def test_dropout_on_the_output_in_training_only(weights):
    parts = biased_conv()
    plain, ffw = FeedForward(parts, weights, r=0), FeedForward(parts, weights, r=0, output_dropout=0.25)
    x = torch.randn(40, D)
    assert torch.equal(ffw.eval()(x), plain(x))
    found = ffw.train()(x)
    dropped = found == 0
    assert 0.15 < dropped.float().mean() < 0.35
    assert_close(found[~dropped], plain(x)[~dropped] / 0.75)
