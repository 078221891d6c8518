"""A base with random weights: its own shape, the same for the same seed; whatever loads an adapter makes it again."""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from deepmlf_llm import DeepMLFModel
from deepmlf_llm.backbones import base_fingerprint, init_seed_of, is_quantized, load_base_model
from deepmlf_llm.backbones.random_base import random_weights
from deepmlf_llm.errors import AdapterError, BaseModelError
from deepmlf_llm.model.merged import MergedDeepMLF
from tests.families import tiny_batch, tiny_config, tiny_model


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A base model of a directory, whose weights are not those of any toy's seed."""
    place = tmp_path_factory.mktemp("base")
    lm = load_base_model("tiny-llama")
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(1.5)
    lm.save_pretrained(place)
    return str(place)


@pytest.mark.parametrize("kind", ["toy", "directory"])
def test_weights_come_from_the_seed_alone(kind, directory):
    name = "tiny-gpt2" if kind == "toy" else directory
    state = torch.get_rng_state()
    first, again = (load_base_model(name, init_seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    other, own = load_base_model(name, init_seed=4), load_base_model(name)
    assert base_fingerprint(first) == base_fingerprint(again)
    digests = {base_fingerprint(lm)["digest"] for lm in (first, other, own)}
    assert len(digests) == 3
    assert base_fingerprint(first)["shapes"] == base_fingerprint(own)["shapes"]
    assert (init_seed_of(first), init_seed_of(own)) == (3, None)
    assert not first.training
    assert not any(p.requires_grad for p in first.parameters())


def test_another_dtype_is_the_same_base_and_layers_are_cut_after_drawing(directory):
    whole, half, short = (
        load_base_model(directory, init_seed=3, **options) for options in ({}, {"dtype": "bfloat16"}, {"num_layers": 2})
    )
    assert base_fingerprint(half)["digest"] == base_fingerprint(whole)["digest"]
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert len(short.model.layers) == 2
    assert torch.equal(short.model.layers[1].mlp.up_proj.weight, whole.model.layers[1].mlp.up_proj.weight)


def test_what_has_no_config_or_would_be_quantized_is_refused(tmp_path, directory):
    with pytest.raises(BaseModelError, match="no model can be made of its config"):
        load_base_model("nobody/nothing", init_seed=1)
    with pytest.raises(BaseModelError, match="quantization='nf4': a base with random weights is not quantized"):
        load_base_model(directory, "nf4", init_seed=1)


def test_an_adapter_has_its_base_made_again_or_is_refused(directory, tmp_path):
    torch.manual_seed(0)
    model = DeepMLFModel(load_base_model(directory, init_seed=3), tiny_config()).eval()
    batch = tiny_batch()
    expected = model(**batch).polarity
    model.save_pretrained(tmp_path / "adapter")
    told = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert told["base_init_seed"] == 3
    assert "random weights (seed 3)" in (tmp_path / "adapter" / "README.md").read_text()
    again = DeepMLFModel.from_pretrained(tmp_path / "adapter")
    assert torch.equal(again(**batch).polarity, expected)
    for base in (load_base_model(directory), load_base_model(directory, init_seed=4)):
        with pytest.raises(
            AdapterError, match=r"another base model; .* random weights of seed 3, which other versions"
        ):
            DeepMLFModel.from_pretrained(tmp_path / "adapter", base=base)
    with pytest.raises(BaseModelError, match="not quantized"):
        DeepMLFModel.from_pretrained(tmp_path / "adapter", quantization="nf4")
    again.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = MergedDeepMLF.from_pretrained(tmp_path / "merged")
    assert merged.deepmlf_config.base_init_seed is None
    assert torch.allclose(merged(**batch).polarity, expected, atol=1e-5)


def test_an_adapter_on_a_base_of_its_own_says_nothing_of_a_seed(tmp_path):
    model = DeepMLFModel(load_base_model("tiny-llama"), tiny_config())
    assert model.deepmlf_config.base_init_seed is None


def shape(tied: bool):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 256, "intermediate_size": 640, "num_attention_heads": 8, "num_key_value_heads": 4}
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(vocab_size=320, num_hidden_layers=4, tie_word_embeddings=tied, **sizes))


@pytest.mark.cpu
@pytest.mark.parametrize("tied", [False, True])
def test_a_shape_with_random_weights_is_a_finite_decoder_with_its_logits_tied_or_not(tied):
    lm = random_weights(shape(tied), "float32", "cpu")
    assert lm(torch.arange(12).reshape(2, 6)).logits.isfinite().all()
    assert (lm.lm_head.weight.data_ptr() == lm.model.embed_tokens.weight.data_ptr()) is tied
    assert not any(t.is_meta or t.requires_grad for t in (*lm.parameters(), *lm.buffers()))


class Drawn(TorchDispatchMode):
    """Counts the values that are drawn."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        drawn = func is torch.ops.aten.normal_.default and not args[0].is_meta
        self.values += args[0].numel() if drawn else 0
        return func(*args, **(kwargs or {}))


@pytest.mark.cpu
def test_random_4_bit_weights_are_drawn_once_and_train_a_step():
    with Drawn() as drawn:
        lm = random_weights(shape(False), "nf4", "cpu")
    assert is_quantized(lm)
    packed = sum(p.numel() * p.element_size() for layer in lm.model.layers for p in layer.parameters())
    dense = 4 * (256 * (2 * 256 + 2 * 128) + 3 * 256 * 640)
    assert packed < 0.3 * 2 * dense
    assert drawn.values == dense + 2 * 320 * 256  # once each: what is packed has no dense twin that fills a device
    model = tiny_model(lm)
    model(**tiny_batch()).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad and p.grad is not None)
