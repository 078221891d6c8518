"""A base must be whole: what its files lack would be random weights, and train on in silence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepmlf_llm.backbones import load_base_model
from deepmlf_llm.backbones.shape import base_model_shape
from deepmlf_llm.backbones.toys import toy_model
from deepmlf_llm.errors import BaseModelError

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole bases: two families, tied and not, one file and shards."""
    directory = tmp_path_factory.mktemp("bases")
    toy_model("tiny-llama").save_pretrained(directory / "llama")
    toy_model("tiny-llama", tie_word_embeddings=True).save_pretrained(directory / "tied")
    toy_model("tiny-gpt2").save_pretrained(directory / "gpt2")
    toy_model("tiny-llama").save_pretrained(directory / "shards", max_shard_size="200KB")
    return directory


@pytest.fixture
def variant(bases: Path, tmp_path: Path) -> Callable[..., str]:
    """A copy of a base with other tensors or another config."""

    def make(source: str, change: Callable[[dict[str, Any]], dict[str, Any]] | None = None, **config: Any) -> str:
        directory = tmp_path / "base"
        shutil.copytree(bases / source, directory)
        if change is not None:
            save_file(change(load_file(directory / WEIGHTS)), directory / WEIGHTS, {"format": "pt"})
        values = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**values, **config}))
        return str(directory)

    return make


def refusal(base: str, **options: Any) -> str:
    with pytest.raises(BaseModelError) as caught:
        load_base_model(base, **options)
    message = str(caught.value)
    assert message.startswith(f"base_model={base!r}: ")
    assert "\n" not in message
    return message


def without(word: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if word not in name}


@pytest.mark.parametrize("source", ["llama", "tied", "gpt2", "shards"])
def test_whole_ones_load(bases, source):
    lm = load_base_model(str(bases / source))
    saved = {
        name: tensor for path in (bases / source).glob("*.safetensors") for name, tensor in load_file(path).items()
    }
    weights = dict(lm.state_dict())
    assert saved
    assert all(torch.equal(weights[name].cpu(), tensor) for name, tensor in saved.items())


@pytest.mark.parametrize(
    ("source", "change", "config"),
    [
        ("llama", without("lm_head"), {"tie_word_embeddings": True}),
        ("llama", lambda t: {**t, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, {}),
        ("gpt2", lambda t: {name.removeprefix("transformer."): tensor for name, tensor in t.items()}, {}),
        (
            "gpt2",
            lambda t: {
                **t,
                "transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8),
                "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
            },
            {},
        ),
    ],
    ids=["head of a tied base", "rotary table", "names without the body's", "GPT-2's masks"],
)
def test_what_a_checkpoint_may_lack_or_hold(bases, variant, source, change, config):
    lm = load_base_model(variant(source, change, **config))
    whole = load_base_model(str(bases / source)).base_model.state_dict()
    assert lm.base_model.state_dict().keys() == whole.keys()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in lm.base_model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "config", "words"),
    [
        (without("layers.2.mlp"), {}, ["missing model.layers.2.mlp.down_proj.weight"]),
        (without("model.norm"), {}, ["missing model.norm.weight"]),
        (without("lm_head"), {}, ["missing lm_head.weight", "body of a model without its head"]),
        (
            lambda t: {f"module.{name}": tensor for name, tensor in t.items()},
            {},
            ["missing lm_head.weight", "and 35 more", "unknown module.lm_head.weight", "begin with 'module.'"],
        ),
        (
            lambda t: {f"_orig_mod.{name}": tensor for name, tensor in t.items()},
            {},
            ["begin with '_orig_mod.'"],
        ),
        (None, {"num_hidden_layers": 6}, ["missing model.layers.4.", "num_hidden_layers=6, the file fewer"]),
        (None, {"num_hidden_layers": 2}, ["unknown model.layers.2.", "num_hidden_layers=2, the file more"]),
        (None, {"vocab_size": 400}, ["misshapen lm_head.weight [320, 64] (config.json expects [400, 64])"]),
        (None, {"hidden_size": 32}, ["misshapen", "model.layers.0.input_layernorm.weight [64]"]),
        (lambda t: {**t, "score.weight": torch.ones(3)}, {}, ["unknown score.weight"]),
        (
            lambda t: {n: w * float("nan") if "layers.1.mlp.up" in n else w for n, w in t.items()},
            {},
            ["values that are not finite in model.layers.1.mlp.up_proj.weight"],
        ),
        (
            lambda t: {n: w.int() if "layers.1.mlp.up" in n else w for n, w in t.items()},
            {},
            ["holds weights that are not floating-point numbers: model.layers.1.mlp.up_proj.weight (I32)"],
        ),
        (None, {"num_attention_heads": 0}, ["expected this directory with a causal LM"]),
        (None, {"hidden_size": "wide"}, ["hidden_size"]),
    ],
)
def test_what_is_not_whole_is_refused_by_name(variant, change, config, words):
    message = refusal(variant("llama", change, **config))
    assert not [word for word in words if word not in message], message


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_so_in_4_and_8_bits(variant, quantization):
    assert "missing model.layers.2.mlp" in refusal(variant("llama", without("layers.2.mlp")), quantization=quantization)


def test_first_layers_on_purpose_are_no_fault(bases):
    assert len(load_base_model(str(bases / "llama"), num_layers=2).model.layers) == 2


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "model-00002-of-00005.safetensors is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "is truncated: "),
        (lambda path: path.write_bytes(b""), "is not a safetensors file, or damaged (0 bytes)"),
        (lambda path: path.write_bytes(path.read_bytes() + b"more"), "is damaged: "),
        (lambda path: path.write_bytes(b"\x00" * 5000), "is not a safetensors file, or damaged"),
        (lambda path: path.write_bytes((900).to_bytes(8, "little") + b"{" * 900), "has a damaged header"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git lfs pull"),
    ],
)
def test_a_shard_that_is_damaged_is_named(variant, damage, words):
    base = variant("shards")
    damage(Path(base) / "model-00002-of-00005.safetensors")
    message = refusal(base)
    assert words in message, message
    assert "model-00002-of-00005" in message
    with pytest.raises(BaseModelError, match="model-00002-of-00005"):
        base_model_shape(base)  # before any weights load


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "model.safetensors.index.json is damaged"),
        ("{}", "model.safetensors.index.json is damaged"),
        ('{"weight_map": []}', "model.safetensors.index.json is damaged"),
        ('{"weight_map": {}}', "names no file"),
        ('{"weight_map": {"lm_head.weight": "../../elsewhere.safetensors"}}', "names files elsewhere"),
    ],
)
def test_an_index_that_is_damaged_is_named(variant, text, words):
    base = variant("shards")
    (Path(base) / "model.safetensors.index.json").write_text(text)
    assert words in refusal(base)


def test_an_index_that_leaves_a_shard_out_lacks_its_tensors(variant):
    base = variant("shards")
    index = Path(base) / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"] = {k: v for k, v in values["weight_map"].items() if "00002" not in v}
    index.write_text(json.dumps(values))
    assert "missing model.layers.0" in refusal(base)


@pytest.mark.parametrize("content", [b"junk" * 50, b"PK\x03\x04 cut off", b""])
def test_weights_of_pytorch_that_are_none_are_named(variant, content):
    base = variant("llama")
    (Path(base) / WEIGHTS).unlink()
    (Path(base) / "pytorch_model.bin").write_bytes(content)
    assert "pytorch_model.bin is truncated, or no file of PyTorch" in refusal(base)


def test_weights_of_pytorch_with_a_wrappers_names_are_refused(variant):
    base = variant("llama")
    tensors = load_file(Path(base) / WEIGHTS)
    (Path(base) / WEIGHTS).unlink()
    torch.save({f"module.{name}": tensor for name, tensor in tensors.items()}, Path(base) / "pytorch_model.bin")
    assert "begin with 'module.'" in refusal(base)
