"""Mirrors ``modules/attention_kernels.py``."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from deepmlf_llm import DeepMLFConfig, DeepMLFModel, load_base_model
from deepmlf_llm.modules.attention_kernels import attention, written_out
from deepmlf_llm.modules.av_encoder import AVEncoder


def test_whoever_builds_a_model_or_an_encoder_has_no_cudnn_attention():
    for build in (
        lambda: DeepMLFModel(load_base_model("tiny-llama"), DeepMLFConfig(fusion_layers="last:1", modalities={})),
        lambda: AVEncoder({"audio": 3}),
    ):
        torch.backends.cuda.enable_cudnn_sdp(True)
        build()
        assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.gpu
def test_a_padded_batch_of_any_length_has_finite_gradients_in_bf16():
    lm = load_base_model("tiny-llama", dtype="bfloat16", attn_implementation="sdpa").cuda()
    model = DeepMLFModel(lm, DeepMLFConfig(fusion_layers="last:2", modalities={"audio": {"dim": 3}})).cuda()
    for length in (7, 24, 33, 44, 52, 56, 64, 96, 128, 192):
        batch = {"input_ids": torch.full((4, length), 9), "attention_mask": torch.ones(4, length, dtype=torch.long)}
        batch["attention_mask"][1:, : length // 2] = 0
        batch |= {"audio": torch.randn(4, 30, 3), "audio_mask": torch.arange(30) < torch.tensor([[30], [1], [9], [0]])}
        batch["labels"] = torch.randn(4)
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            model(**{name: tensor.cuda() for name, tensor in batch.items()}).loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None), length


def heads_and_mask(dtype):
    """Query, key, value, what upstream asks for, and a mask that differs by row and position."""
    torch.manual_seed(0)
    query, key, value, asked = (torch.randn(3, 4, n, 8, dtype=dtype) for n in (5, 7, 7, 5))
    mask = torch.rand(3, 1, 5, 7) < 0.6
    mask[..., 2] = True
    return [x.requires_grad_() for x in (query, key, value)], asked.transpose(1, 2), mask


@pytest.mark.cpu
def test_half_precision_on_a_cpu_trains_without_the_fused_kernel_and_says_the_same(monkeypatch):
    exact, asked, mask = heads_and_mask(torch.float32)
    expected = attention(*exact, mask)
    assert_close(expected, F.scaled_dot_product_attention(*exact, attn_mask=mask).transpose(1, 2))
    expected_gradients = torch.autograd.grad((expected * asked).sum(), exact)

    def refuse(*args, **kwargs):
        raise AssertionError("the fused kernel ran")

    monkeypatch.setattr(F, "scaled_dot_product_attention", refuse)
    half = [x.detach().bfloat16().requires_grad_() for x in exact]
    found = attention(*half, mask)
    assert (found.dtype, found.shape) == (torch.bfloat16, expected.shape)
    assert_close(found.float(), expected, rtol=0.05, atol=0.03)
    for a, b in zip(torch.autograd.grad((found * asked.bfloat16()).sum(), half), expected_gradients, strict=True):
        assert_close(a.float(), b, rtol=0.05, atol=0.06)
    with pytest.raises(AssertionError, match="the fused kernel ran"):
        attention(*(x.detach() for x in half), mask)


def test_written_out_is_as_fine_as_its_query():
    (query, key, value), _, mask = heads_and_mask(torch.float64)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.5).transpose(1, 2)
    assert_close(written_out(query, [(key, value)], mask, 0.5), expected, rtol=1e-12, atol=1e-12)


def test_written_out_drops_weights_by_its_share():
    (query, key, value), _, mask = heads_and_mask(torch.float32)
    ones = torch.ones_like(value)
    read = torch.stack([written_out(query, [(key, ones)], mask, 1.0, dropout=0.25) for _ in range(200)])
    assert not torch.equal(read[0], read[1])
    assert_close(read.mean(), torch.tensor(1.0), atol=0.02, rtol=0)
