"""What the GPU benchmark is made of, as far as a CPU can show it: random bases, and the operations that MFU counts."""

import pytest
import torch
from gpu import LLAMAS, Case, measure_case, needed_flops, random_llama
from torch.utils.flop_counter import FlopCounterMode
from variants import VARIANTS, OurLoop
from workload import Geometry, make_utterance, with_token_ids

from deepmlf_llm.backbones import load_tokenizer
from deepmlf_llm.backbones.quantization import is_quantized
from deepmlf_llm.errors import ConfigError

SIZES = {
    "vocab_size": 320,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
GEOMETRY = Geometry(max_tokens=24, frames=4, modalities={"audio": 4})


def make_loop(lm, variant, batch=4):
    """A batch without padding: every text is as long as the limit."""
    import numpy as np

    tokenizer, random = load_tokenizer("tiny-llama"), np.random.default_rng(0)
    drawn = [make_utterance(40, GEOMETRY, random, f"u{i}", frames=4) for i in range(batch)]
    utterances = with_token_ids(drawn, tokenizer, GEOMETRY.max_tokens)
    return OurLoop(lm, tokenizer, [utterances], GEOMETRY, *VARIANTS[variant], num_tokens=6, rank=8)


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_needed_operations_are_those_that_pytorch_counts(variant):
    loop = make_loop(random_llama(SIZES, "float32", "cpu"), variant)
    loop.step(0)  # after which frozen tokens are kept
    with FlopCounterMode(display=False) as counter:
        loop.step(0)
    counted = sum(flops for op, flops in counter.get_flop_counts()["Global"].items() if "attention" not in str(op))
    layers = loop.model.base_model.active_stack.layers
    needed = needed_flops(loop.model.config, variant, 4 * 24, 4 * 6, layers, 8)
    assert needed == pytest.approx(counted, rel=0.05)


def test_random_llama_is_a_finite_decoder_with_tied_or_own_logits():
    lm = random_llama({**SIZES, "tie_word_embeddings": True}, "float32", "cpu")
    ids = torch.arange(12).reshape(2, 6)
    assert lm(ids).logits.isfinite().all()
    assert lm.lm_head.weight.data_ptr() == lm.model.embed_tokens.weight.data_ptr()
    assert not any(p.requires_grad or p.is_meta for p in lm.parameters())
    assert not any(b.is_meta for b in lm.buffers())
    own = random_llama(SIZES, "float32", "cpu")
    assert own.lm_head.weight.data_ptr() != own.model.embed_tokens.weight.data_ptr()


def test_random_nf4_llama_trains_a_step():
    lm = random_llama(SIZES, "nf4", "cpu")
    assert is_quantized(lm)
    packed = sum(p.numel() * p.element_size() for layer in lm.model.layers for p in layer.parameters())
    dense = 8 * (256 * (2 * 256 + 2 * 128) + 3 * 256 * 640) * 2
    assert packed < 0.3 * dense
    loop = make_loop(lm, "joint")
    before = [p.clone() for p in loop.trainable()]
    assert loop.step(0) == 4
    assert all(p.isfinite().all() for p in loop.trainable())
    assert any(not torch.equal(old, new) for old, new in zip(before, loop.trainable(), strict=True))


def test_geometries_are_the_known_models():
    from transformers import LlamaConfig, LlamaForCausalLM

    billions = {}
    for name, sizes in LLAMAS.items():
        with torch.device("meta"):
            lm = LlamaForCausalLM(LlamaConfig(**sizes))
        lm.tie_weights()
        billions[name] = sum(p.numel() for p in lm.parameters()) / 1e9
    expected = {"smollm2-135m": 0.1345, "llama-1b": 1.236, "llama-8b": 8.03, "llama-70b": 70.55}
    assert billions == pytest.approx(expected, rel=0.002)


@pytest.mark.parametrize("spec", ["llama-9b:nf4:8", "llama-8b:int3:8", "llama-8b:nf4", "llama-8b:nf4:1"])
def test_a_case_that_cannot_be_is_refused_by_name(spec):
    with pytest.raises(ConfigError, match="expected MODEL:KIND:BATCH"):
        Case(spec, "cpu")


@pytest.mark.gpu
def test_a_case_measures_every_variant():
    result = measure_case("smollm2-135m:bfloat16:4", rounds=1, peak_flops=1e14)
    assert set(result["variants"]) == {"yardstick", *VARIANTS}
    for name, facts in result["variants"].items():
        assert facts["samples_per_second"]["median"] > 0
        assert facts["peak_bytes"] > 0
        assert name == "yardstick" or 0 < facts["mfu"] < 1
