"""What identifies a base, in whatever dtype or quantisation it is loaded."""

from __future__ import annotations

import torch

from deepmlf_llm.backbones import base_fingerprint, compare_fingerprints, load_base_model
from deepmlf_llm.backbones.fingerprint import weights_digest
from tests.families import tiny_family


def test_the_same_in_every_dtype_and_quantisation():
    expected = base_fingerprint(load_base_model("tiny-llama", dtype="float32"))
    assert set(expected) == {"family", "width", "layers", "vocabulary", "weights"}
    for settings in ({"dtype": "bfloat16"}, {"quantization": "nf4"}, {"quantization": "int8"}):
        assert base_fingerprint(load_base_model("tiny-llama", **settings)) == expected


def test_other_bases_differ_by_name():
    base = base_fingerprint(tiny_family("llama"))
    assert compare_fingerprints(base, base_fingerprint(tiny_family("llama"))) == []
    other = compare_fingerprints(base, base_fingerprint(tiny_family("llama", seed=1)))
    assert len(other) == 1
    assert other[0].startswith("weights: the adapter was trained on ")
    shallow = compare_fingerprints(base, base_fingerprint(tiny_family("mistral", num_hidden_layers=2, vocab_size=97)))
    assert [phrase.split(":")[0] for phrase in shallow] == ["family", "layers", "vocabulary", "weights"]
    assert compare_fingerprints({}, base) == []


def test_a_base_without_weights_is_known_by_its_shape():
    with torch.device("meta"):
        lm = tiny_family("gpt2")
    shape = base_fingerprint(lm)
    assert "weights" not in shape
    assert compare_fingerprints(base_fingerprint(tiny_family("gpt2")), shape) == []


def test_a_digest_of_weights_changes_with_any_tuning():
    lm = tiny_family("llama")
    before = weights_digest(lm.named_parameters())
    assert weights_digest(tiny_family("llama").named_parameters()) == before
    with torch.no_grad():
        lm.model.layers[3].mlp.up_proj.weight.add_(1e-3)
    assert weights_digest(lm.named_parameters()) != before
    assert weights_digest(lm.bfloat16().named_parameters()) != before
