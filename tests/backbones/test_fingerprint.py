"""What identifies a base, in whatever dtype or quantization it is loaded."""

from __future__ import annotations

import pytest
import torch

from deepmlf_llm.backbones import base_fingerprint, compare_fingerprints, load_base_model
from deepmlf_llm.backbones.fingerprint import weights_digest
from deepmlf_llm.backbones.shape import shape_of
from deepmlf_llm.config.facts import fingerprint_problems
from tests.families import tiny_family

STORAGE = [
    {"dtype": "float32"},
    {"dtype": "bfloat16"},
    {"dtype": "float16"},
    {"quantization": "nf4"},
    {"quantization": "fp4", "dtype": "bfloat16"},
    {"quantization": "int8", "dtype": "float16"},
]


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])
def test_the_same_in_every_dtype_and_quantization(name):
    found = [base_fingerprint(load_base_model(name, **settings)) for settings in STORAGE]
    for first in found:
        assert fingerprint_problems(first) == []
        for second in found:
            assert compare_fingerprints(first, second) == []
    assert found[0]["digest"] == found[1]["digest"]
    assert found[0]["weights"] == found[1]["weights"] == found[3]["weights"]


def test_other_bases_differ_by_name():
    base = base_fingerprint(tiny_family("llama"))
    assert compare_fingerprints(base, base_fingerprint(tiny_family("llama"))) == []
    other = compare_fingerprints(base, base_fingerprint(tiny_family("llama", seed=1)))
    assert len(other) == 1
    assert other[0].startswith("weights: the adapter was trained on ")
    shallow = compare_fingerprints(base, base_fingerprint(tiny_family("mistral", num_hidden_layers=2, vocab_size=97)))
    assert [phrase.split(":")[0] for phrase in shallow] == ["family", "layers", "vocabulary", "shapes", "weights"]
    assert compare_fingerprints({}, base) == []


@pytest.mark.parametrize("settings", STORAGE)
def test_one_other_tensor_is_found_whatever_it_is_stored_in(settings, tmp_path):
    """The embeddings, which were all that was looked at once, are the same."""
    base = base_fingerprint(load_base_model("tiny-llama"))
    lm = load_base_model("tiny-llama")
    torch.nn.init.normal_(lm.model.layers[2].mlp.up_proj.weight, std=0.02)
    lm.save_pretrained(tmp_path)
    other = base_fingerprint(load_base_model(str(tmp_path), **settings))
    assert [phrase.split(":")[0] for phrase in compare_fingerprints(base, other)] == ["weights"]
    assert [phrase.split(":")[0] for phrase in compare_fingerprints(other, base)] == ["weights"]


def test_swapped_layers_and_a_little_tuning_are_found():
    base = base_fingerprint(tiny_family("llama"))
    swapped = tiny_family("llama")
    swapped.model.layers[0], swapped.model.layers[1] = swapped.model.layers[1], swapped.model.layers[0]
    assert "tensors are others" in compare_fingerprints(base, base_fingerprint(swapped))[0]
    tuned = tiny_family("llama")
    with torch.no_grad():
        tuned.model.layers[0].self_attn.q_proj.weight.mul_(1.01)
    assert "tuned or merged since" in compare_fingerprints(base, base_fingerprint(tuned))[0]


def test_an_adapter_of_the_first_version_is_compared_by_its_rule():
    lm = tiny_family("llama")
    found = base_fingerprint(lm)
    first = {key: found[key] for key in ("family", "width", "layers", "vocabulary", "weights")}
    assert fingerprint_problems(first) == []
    assert compare_fingerprints(first, found) == []
    assert compare_fingerprints(first, base_fingerprint(tiny_family("llama", seed=1)))
    assert compare_fingerprints(first, base_fingerprint(lm.half())) == [], (
        "a hash of values that fp16 rounds says nothing"
    )


def test_lora_on_a_base_does_not_change_it():
    import peft

    base = base_fingerprint(tiny_family("llama"))
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"], use_dora=True)
    wrapped = peft.get_peft_model(tiny_family("llama"), config)
    assert compare_fingerprints(base, base_fingerprint(wrapped.base_model.model)) == []


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_base_without_weights_is_known_by_its_shape(family):
    lm = tiny_family(family)
    shape = base_fingerprint(shape_of(lm))
    assert "weights" not in shape
    assert fingerprint_problems(shape) == []
    assert compare_fingerprints(base_fingerprint(lm), shape) == []
    narrow = base_fingerprint(shape_of(tiny_family("llama", intermediate_size=24)))
    assert compare_fingerprints(base_fingerprint(tiny_family("llama")), narrow)[0].startswith("shapes:")


@pytest.mark.parametrize("sketch", ["", "no base64!", "AAAA", 5 * "A"])
def test_a_sketch_that_is_damaged_is_another_base(sketch):
    found = base_fingerprint(tiny_family("llama"))
    damaged = {**found, "sketch": sketch, "digest": "0"}
    assert compare_fingerprints(damaged, found)[0].startswith("weights: ")


def test_a_digest_of_weights_changes_with_any_tuning():
    lm = tiny_family("llama")
    before = weights_digest(lm.named_parameters())
    assert weights_digest(tiny_family("llama").named_parameters()) == before
    with torch.no_grad():
        lm.model.layers[3].mlp.up_proj.weight.add_(1e-3)
    assert weights_digest(lm.named_parameters()) != before
    assert weights_digest(lm.bfloat16().named_parameters()) != before
