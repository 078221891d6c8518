"""Mirrors ``modules/attention_kernels.py``."""

from __future__ import annotations

import pytest
import torch

from deepmlf_llm import DeepMLFConfig, DeepMLFModel, load_base_model
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
