"""Everything DeepMLF adds, in one module."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from deepmlf_llm.backbones import Decoder
from deepmlf_llm.fusion.build import build_stack
from tests.families import WIDTH, tiny_config, tiny_family, tiny_model


def features(dtype=torch.float32):
    masks = {"audio": torch.tensor([[True] * 4, [True, False, False, False]]), "vision": torch.ones(2, 3).bool()}
    dims = {"audio": 3, "vision": 5}
    return {name: (torch.randn(*mask.shape, dims[name]).to(dtype), mask) for name, mask in masks.items()}


@pytest.mark.parametrize("width", [24, pytest.param(2, marks=pytest.mark.cpu)])
def test_what_every_block_reads_comes_out_of_one_matmul(width):
    """Keys and values, or their weights where that takes less."""
    encoder = {"width": width, "num_layers": 1, "num_heads": 1, "ffw_width": 4, "max_frames": 5}
    stack = build_stack(Decoder(tiny_family("llama")), tiny_config(fusion_layers=[3, 0], av_encoder=encoder)).eval()
    context, readers = stack.encode(features())
    assert list(readers) == stack.layers == [0, 3]
    for index, reader in enumerate(readers.values()):
        weight = stack.context_projection.weight[2 * WIDTH * index : 2 * WIDTH * (index + 1)]
        if width == 2:
            assert reader.frames is context.frames
            assert_close(reader.weights, weight.T, rtol=0, atol=0)
        else:
            assert_close(reader.key_value, context.frames @ weight.T)
    assert stack.context_projection.bias is None


def test_a_gate_of_kind_none_never_trains():
    stack = build_stack(Decoder(tiny_family("llama")), tiny_config(gate="none"))
    for trainable in (True, False):
        stack.set_trainable(trainable)
        flags = {name: p.requires_grad for name, p in stack.named_parameters()}
        assert not any(flag for name, flag in flags.items() if name.endswith("alpha"))
        assert all(flag is trainable for name, flag in flags.items() if not name.endswith("alpha"))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_frozen_av_encoder_is_never_trained_and_stays_in_eval_mode(frozen):
    stack = build_stack(Decoder(tiny_family("llama")), tiny_config(freeze_av_encoder=frozen))
    for trainable in (True, False):
        stack.set_trainable(trainable)
        for name, parameter in stack.named_parameters():
            assert parameter.requires_grad is (trainable and not (frozen and name.startswith("av_encoder."))), name
        stack.train(trainable)
        assert all(module.training is (trainable and not frozen) for module in stack.av_encoder.modules())
        assert all(module.training is trainable for module in stack.heads.modules())


def test_gates_shut_holds_inside_only_also_after_an_error():
    stack = build_stack(Decoder(tiny_family("llama")), tiny_config())
    assert stack.gate_values() == {1: {"gca": 0.5, "ffw": 0.5}, 3: {"gca": 0.5, "ffw": 0.5}}

    def fail():
        with stack.gates_shut():
            assert stack.gate_values() == {1: {"gca": 0.0, "ffw": 0.0}, 3: {"gca": 0.0, "ffw": 0.0}}
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert stack.gate_values()[1] == {"gca": 0.5, "ffw": 0.5}


def test_gate_values_follow_the_parameters():
    model = tiny_model(tiny_family("llama"), gate="tanh")
    block = model.base_model.active_stack.blocks[1]
    expected = {"gca": block.cross_attention.gate.alpha.tanh().item(), "ffw": block.ffw_gate.alpha.tanh().item()}
    assert model.gate_values()["layer 1"] == pytest.approx(expected)
    assert list(model.gate_values()) == ["layer 1", "layer 3"]
