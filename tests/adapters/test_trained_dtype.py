"""An adapter predicts in the dtype that it was trained in, unless another is asked for or the CPU is slow in it."""

from __future__ import annotations

import pytest
import torch

from deepmlf_llm import DeepMLFModel, SentimentPredictor, load_base_model
from deepmlf_llm.adapters.compatibility import trained_dtype
from deepmlf_llm.backbones import cpu
from tests.families import tiny_config


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        ("float32", "auto", "float32"),
        ("bfloat16", "auto", "auto"),
        ("float16", "auto", "auto"),
        (None, "auto", "float32"),
        ("float32", "bfloat16", "bfloat16"),
        ("bfloat16", "float32", "float32"),
    ],
)
def test_the_dtype_of_a_base_to_load_on_a_cpu(monkeypatch, stored, asked, expected):
    config = tiny_config()
    config.base_fingerprint = None if stored is None else {"stored": stored}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert trained_dtype(config, asked) == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert trained_dtype(config, asked) == asked


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("trained_on", ["float32", "bfloat16"])
@pytest.mark.cpu
def test_adapters_and_merged_models_are_loaded_so(trained_on, native, tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "computes_bfloat16", lambda: native)
    monkeypatch.setenv(cpu.DTYPE_VARIABLE, "")
    model = DeepMLFModel(load_base_model("tiny-llama", dtype=trained_on), tiny_config(ffw_scope="fusion"))
    model.save_pretrained(tmp_path / "adapter")
    expected = "bfloat16" if native and trained_on == "bfloat16" else "float32"
    assert SentimentPredictor.from_pretrained(tmp_path / "adapter").dtype == expected
    assert SentimentPredictor.from_pretrained(tmp_path / "adapter", dtype="float32").dtype == "float32"
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = DeepMLFModel.from_pretrained(tmp_path / "merged")
    assert str(merged.get_base_model().dtype) == f"torch.{expected}"
