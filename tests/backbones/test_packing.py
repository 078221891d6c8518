"""Rows without padding: the same numbers as padded rows, whichever kernel reads them."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from deepmlf_llm.backbones import PackedRows, load_base_model
from deepmlf_llm.backbones.packing import varlen_attention
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.model.peft_model import DeepMLFModel
from deepmlf_llm.modules.mm_block import PADDED

MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]])
IDS = torch.arange(18).reshape(3, 6) * 7 + 3


def test_packing_and_unpacking_are_inverse_on_real_positions():
    rows = PackedRows.of(MASK)
    x = torch.randn(3, 6, 2)
    packed = rows.pack(x)
    assert packed.shape == (1, int(MASK.sum()), 2)
    assert torch.equal(rows.unpack(packed), x * MASK[..., None])
    assert rows.offsets.tolist() == [0, 6, 10, 11]
    assert torch.equal(packed[0, rows.last(1)], x[:, -1:])


def test_the_last_positions_of_each_row_are_found_where_rows_are_packed_and_where_they_are_padded():
    rows = PackedRows.of(MASK)
    hidden, last = torch.randn(3, 6, 2), torch.randn(3, 1, 2)
    for layout, x in ((rows, rows.pack(hidden)), (PADDED, hidden)):
        assert torch.equal(layout.take_last(x, 1), hidden[:, -1:])
        changed = layout.put_last(x, last)
        expected = torch.cat([hidden[:, :-1], last], dim=1)
        assert torch.equal(changed, rows.pack(expected) if layout is rows else expected)


@pytest.mark.parametrize("window", [None, 3])
def test_rows_never_attend_to_each_other(window):
    torch.manual_seed(0)
    rows = PackedRows.of(MASK)
    query, key, value = (torch.randn(1, heads, int(MASK.sum()), 4) for heads in (4, 2, 2))
    out, weights = varlen_attention(
        torch.nn.Identity(), query, key, value, None, 0.5, rows.offsets, rows.longest, sliding_window=window
    )
    assert weights is None
    for start, stop in zip(rows.offsets[:-1], rows.offsets[1:], strict=True):
        for head in range(4):
            q, k, v = query[0, head, start:stop], key[0, head // 2, start:stop], value[0, head // 2, start:stop]
            for i in range(len(q)):
                seen = slice(max(0, i - window + 1) if window else 0, i + 1)
                expected = torch.softmax(0.5 * q[i] @ k[seen].T, dim=-1) @ v[seen]
                assert_close(out[0, start + i, head], expected)


def run(name, scope, implementation, dtype="float32", device="cpu"):
    """A whole pass with its gradients: text that is read once takes no packed rows."""
    torch.manual_seed(0)
    base = load_base_model(name, attn_implementation=implementation, dtype=dtype).to(device)
    objective = {"gamma": 1.0} if scope == "joint" else {}
    config = DeepMLFConfig(fusion_layers=[1, 3], ffw_scope=scope, modalities={"audio": {"dim": 5}}, objective=objective)
    model = DeepMLFModel(base, config).eval()
    model.fused_decoder.text_once = False
    audio, labels = torch.ones(3, 4, 5, device=device), torch.ones(3, device=device)
    out = model(IDS.to(device), MASK.to(device), labels=labels, audio=audio)
    out.loss.backward()
    return out, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("scope", ["joint", "fusion"])
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-mistral", "tiny-gpt2"])
def test_packed_model_equals_the_padded_one_gradients_included(name, scope):
    padded, padded_gradients = run(name, scope, "sdpa")
    packed, packed_gradients = run(name, scope, "varlen")
    assert_close(packed.polarity, padded.polarity)
    assert_close(packed.losses, padded.losses)
    assert packed_gradients.keys() == padded_gradients.keys()
    for parameter, gradient in padded_gradients.items():
        assert_close(packed_gradients[parameter], gradient, rtol=1e-4, atol=1e-6, msg=parameter)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("scope", ["joint", "fusion"])
def test_flash_kernels_run_and_agree_with_padded_sdpa_in_bf16(scope):
    padded, padded_gradients = run("tiny-llama", scope, "sdpa", "bfloat16", "cuda")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        packed, gradients = run("tiny-llama", scope, "varlen", "bfloat16", "cuda")
    assert any("flash" in event.key.lower() for event in profile.key_averages())
    assert_close(packed.polarity, padded.polarity, rtol=2e-2, atol=2e-2)
    flat, expected = (torch.cat([found[name].flatten() for name in found]) for found in (gradients, padded_gradients))
    assert torch.nn.functional.cosine_similarity(flat, expected, dim=0) > 0.99
