"""Toys: the same weights every time, a tokenizer that needs no download."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepmlf_llm.backbones import load_base_model, quantization_of
from deepmlf_llm.backbones.toys import TOYS, toy_model, toy_tokenizer

TOKENIZER = toy_tokenizer()


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.cpu
def test_the_same_weights_for_the_same_seed_and_no_trace_in_the_random_state(name):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = toy_model(name)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), toy_model(name).parameters(), strict=True))
    other = toy_model(name, seed=1)
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert sum(p.numel() for p in first.parameters()) < 400_000


def test_changes_go_to_the_config():
    assert len(toy_model("tiny-llama", num_hidden_layers=2).model.layers) == 2


@pytest.mark.parametrize("name", TOYS)
def test_a_quantized_toy_is_the_same_on_every_rank(name, monkeypatch):
    """transformers saves on rank 0 only, and bitsandbytes quantizes what it loads from files."""
    from transformers import PreTrainedModel

    first = load_base_model(name, quantization="nf4", dtype="float32")
    monkeypatch.setattr(PreTrainedModel, "should_save_on_this_rank", lambda *_: False)
    other = load_base_model(name, quantization="nf4", dtype="float32")
    assert quantization_of(other) == "nf4" or name == "tiny-gpt2"  # Conv1D is no nn.Linear
    ids = torch.arange(12).reshape(2, 6)
    assert torch.equal(first(ids).logits, other(ids).logits)


@given(st.text(max_size=20))
def test_any_text_survives_the_tokenizer(text):
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text
    assert len(ids) == len(text.encode())
    assert all(i < toy_model_vocabulary() for i in ids)


def toy_model_vocabulary() -> int:
    return 320
