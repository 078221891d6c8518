"""Text streams by token ids: computed once, the same as computed now, keyed by whatever changes them."""

from __future__ import annotations

import errno

import pytest
import torch
from torch.testing import assert_close

from deepmlf_llm.backbones import Decoder, disk_store, load_base_model, read_text, text_cache
from deepmlf_llm.backbones.text_cache import TextCache, texts_of
from deepmlf_llm.backbones.text_store import unpacked
from deepmlf_llm.errors import ConfigError
from tests.families import LENGTHS, tiny_batch, tiny_family


@pytest.fixture(scope="module")
def decoder():
    return Decoder(tiny_family("mistral"))


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize(("depth", "lowest"), [(None, 0), (2, 0), (4, 0), (None, 3), (2, 1), (2, 2)])
def test_equals_the_stream_computed_now(decoder, depth, lowest, where, tmp_path):
    cache = TextCache(decoder, depth, tmp_path if where == "disk" else None, lowest=lowest)
    for padding in (3, 0):  # kept from one batch, read into another
        batch = tiny_batch(padding=padding)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        found, expected = cache.read(ids, mask), read_text(decoder, decoder.embeddings(ids), mask, depth)
        real = mask.bool()
        for (keys, values), (k, v) in zip(found.keys_values, expected.keys_values[lowest:], strict=True):
            for kept, now in ((keys, k), (values, v)):
                assert_close(kept.transpose(1, 2)[real], now.transpose(1, 2)[real], rtol=1e-5, atol=1e-5)
                assert kept.isfinite().all()
        states = (found.states, expected.states) if depth is None else (found.states[real], expected.states[real])
        assert_close(*states, rtol=1e-5, atol=1e-5)
    assert len(cache) == 3


@pytest.mark.cpu
def test_reads_in_batches_of_like_length(decoder, monkeypatch):
    monkeypatch.setattr(text_cache, "BATCH_TOKENS", 10)
    sizes = []
    cache = TextCache(decoder, 1)
    cache.add([range(1, n + 1) for n in (5, 5, 2, 2, 3, 12)], progress=sizes.append)
    assert sum(sizes) == len(cache) == 4, "each text once"
    assert sizes == [1, 2, 1]
    cache.add([range(1, 6)], progress=sizes.append)
    assert sizes == [1, 2, 1], "kept already"


@pytest.mark.parametrize("storage", [None, "int8"])
@pytest.mark.parametrize("lengths", [(2, 9, 5), (5, 5, 5)], ids=["padded", "of one length"])
@pytest.mark.parametrize("depth", [None, 2])
def test_bytes_told_are_bytes_held(decoder, depth, lengths, storage):
    cache = TextCache(decoder, depth, storage=storage)
    texts = [tuple(range(first, first + n)) for first, n in enumerate(lengths, start=1)]
    cache.add(texts)
    storages = [t.untyped_storage() for e in cache.store.found(texts).values() for t in e.tensors()]
    held = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    assert held == cache.nbytes == cache.predicted_bytes(texts)


def test_the_key_names_whatever_changes_a_stream(tmp_path):
    lms = [tiny_family("llama"), tiny_family("llama", seed=1), tiny_family("llama").bfloat16()]
    caches = [TextCache(Decoder(lm), depth, tmp_path) for lm in lms for depth in (None, 2)]
    caches += [TextCache(Decoder(lms[0]), 2, tmp_path, storage) for storage in ("int8", "float32")]
    caches.append(TextCache(Decoder(load_base_model("tiny-llama", quantization="nf4")), 2, tmp_path))
    caches.append(TextCache(Decoder(load_base_model("tiny-llama", dtype="float32")), 2, tmp_path))
    assert len({cache.store.directory for cache in caches}) == len(caches)
    for part in ("model.norm", "lm_head"):  # the last is beside the point: a stream holds no logits
        lm = tiny_family("llama")
        with torch.no_grad():
            lm.get_submodule(part).weight.mul_(1.5)
        others = [TextCache(Decoder(lm), None, tmp_path).store.directory]
        assert (others[0] in {cache.store.directory for cache in caches}) is (part == "lm_head")
    positions = tiny_family("gpt2")
    first = TextCache(Decoder(positions), 2, tmp_path).store.directory
    with torch.no_grad():
        positions.transformer.wpe.weight.mul_(1.5)
    assert TextCache(Decoder(positions), 2, tmp_path).store.directory != first
    again = TextCache(Decoder(tiny_family("llama")), None, tmp_path)
    assert again.store.directory == caches[0].store.directory


@pytest.mark.parametrize(
    "changes",
    [{"sliding_window": 3}, {"sliding_window": None}, {"rope_parameters": {"rope_theta": 5e4, "rope_type": "default"}}],
)
def test_the_same_weights_under_another_config_are_another_stream(tmp_path, changes):
    batch = tiny_batch()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    for lm in (tiny_family("mistral"), tiny_family("mistral", **changes)):
        cache, decoder = TextCache(Decoder(lm), None, tmp_path), Decoder(lm)
        assert len(cache) == 0
        expected = read_text(decoder, decoder.embeddings(ids), mask).states
        assert_close(cache.read(ids, mask).states, expected, rtol=1e-5, atol=1e-5)


def test_a_base_is_the_same_wherever_it_was_loaded_from(tmp_path):
    lm = load_base_model("tiny-llama")
    lm.save_pretrained(tmp_path / "base")
    elsewhere = load_base_model(str(tmp_path / "base"))
    elsewhere.config.use_cache = False  # as activation checkpointing does
    first, second = (TextCache(Decoder(base), 2, tmp_path / "text") for base in (lm, elsewhere))
    assert first.store.directory == second.store.directory


def test_what_is_kept_does_not_depend_on_autocast(decoder):
    batch = tiny_batch()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    cache = TextCache(decoder)
    with torch.autocast("cpu", torch.bfloat16):
        cache.read(ids, mask)
    expected = read_text(decoder, decoder.embeddings(ids), mask)
    found = cache.read(ids, mask)
    assert_close(found.states, expected.states, rtol=1e-5, atol=1e-5)
    assert found.keys_values[0][0].dtype == torch.float32


def test_texts_are_the_real_tokens_of_each_row():
    batch = tiny_batch(padding=2)
    texts = texts_of(batch["input_ids"], batch["attention_mask"])
    assert [len(text) for text in texts] == list(LENGTHS)
    assert list(texts[1]) == batch["input_ids"][1, -3:].tolist()


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.cpu
def test_what_does_not_fit_is_refused_before_anything_is_read(decoder, where, tmp_path, monkeypatch):
    cache = TextCache(decoder, 2, tmp_path if where == "disk" else None)
    texts = [[1, 2], [3, 4, 5]]
    assert cache.store.free_bytes() > 0
    monkeypatch.setattr(cache.store, "free_bytes", lambda: cache.predicted_bytes(texts) - 1)
    place = str(cache.store.directory) if where == "disk" else "in memory"
    with pytest.raises(ConfigError, match=r"2 texts take 0 MB, and 0 MB are free") as caught:
        cache.check_room(texts)
    assert place in str(caught.value)
    cache.add(texts[:1])
    cache.check_room(texts)  # what is kept already needs no room


def test_a_place_that_cannot_be_written_costs_a_warning(decoder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match=r"file is a file, and a directory is needed .*going on with .* in memory"):
        cache = TextCache(decoder, 2, tmp_path / "file" / "text")
    assert cache.kind == "memory"
    cache.add([[1, 2], [3, 4, 5]])
    assert len(cache) == 2


@pytest.mark.parametrize("how", ["add", "read"])
def test_a_disk_that_takes_no_more_costs_a_warning(decoder, how, tmp_path, monkeypatch):
    batch = tiny_batch()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    cache, expected = TextCache(decoder, None, tmp_path), read_text(decoder, decoder.embeddings(ids), mask).states
    first = texts_of(ids, mask)[0]
    cache.add([first])
    assert cache.kind == "disk"

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache.store, "_write", full)
    with pytest.warns(UserWarning, match=r"disk is full .*in memory"):
        cache.add(texts_of(ids, mask)) if how == "add" else cache.read(ids, mask)
    assert_close(cache.read(ids, mask).states, expected, rtol=1e-5, atol=1e-5)  # without another warning
    assert cache.kind == "memory"
    assert len(cache) >= 2
    again = TextCache(decoder, None, tmp_path)  # what lay there is whole, and found
    assert again.missing(texts_of(ids, mask)) == sorted({*texts_of(ids, mask)} - {first}, key=len)


def test_a_whole_cache_is_read_where_nothing_can_be_written(decoder, tmp_path, monkeypatch):
    TextCache(decoder, 2, tmp_path).add([[1, 2], [3, 4, 5]])

    def refused(*_, **__):
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(disk_store, "write_aside", refused)
    monkeypatch.setattr(disk_store.DiskStore, "_write", refused)
    cache = TextCache(decoder, 2, tmp_path)
    cache.add([[1, 2], [3, 4, 5]])
    assert (cache.kind, len(cache)) == ("disk", 2)


def test_entries_lie_in_host_memory(decoder):
    cache = TextCache(decoder, 2)
    cache.add([[1, 2, 3]])
    assert {tensor.device.type for tensor in cache.store[(1, 2, 3)].tensors()} == {"cpu"}


def test_texts_read_together_lie_together(decoder):
    cache = TextCache(decoder, 2)
    cache.add([[1, 2, 3], [4, 5, 6], [7, 8]])
    storages = {cache.store[text].keys_values.untyped_storage().data_ptr() for text in ((1, 2, 3), (4, 5, 6), (7, 8))}
    assert len(storages) == 1


def dtypes_of_projections(lm, work):
    seen = set()
    handle = lm.model.layers[0].self_attn.q_proj.register_forward_hook(lambda m, a, out: seen.add(out.dtype))
    work()
    handle.remove()
    return seen


@pytest.mark.parametrize(
    ("storage", "native", "expected"),
    [("bfloat16", True, "bfloat16"), ("int8", True, "bfloat16"), (None, True, "float32"), ("float16", True, "float32"),
     ("bfloat16", False, "float32")],
)  # fmt: skip
@pytest.mark.cpu
def test_text_that_is_kept_in_few_bits_is_read_in_the_dtype_that_is_fast_here(
    storage, native, expected, monkeypatch, tmp_path
):
    monkeypatch.setattr(text_cache, "computes_bfloat16", lambda: native)
    lm = tiny_family("llama")
    texts = [[5, 6, 7], [8, 9]]
    cache = TextCache(Decoder(lm), None, tmp_path, storage)
    assert dtypes_of_projections(lm, lambda: cache.add(texts)) == {getattr(torch, expected)}
    monkeypatch.setattr(text_cache, "computes_bfloat16", lambda: False)
    plain = TextCache(Decoder(lm), None, tmp_path, storage)
    assert (plain.store.directory == cache.store.directory) is (expected == "float32")
    plain.add(texts)
    for text in ((5, 6, 7), (8, 9)):
        assert_close(cache.store[text].states, plain.store[text].states, rtol=0.05, atol=0.05)
        assert cache.store[text].states.dtype == torch.float32
        found, told = (unpacked(c.store[text]).float() for c in (cache, plain))
        assert_close(found, told, rtol=0.1, atol=0.1)


def test_a_bf16_lm_reads_as_it_is(monkeypatch):
    monkeypatch.setattr(text_cache, "computes_bfloat16", lambda: True)
    lm = tiny_family("llama").bfloat16()
    cache = TextCache(Decoder(lm), None, storage="bfloat16")
    assert not cache._in_bfloat16


def test_what_fits_beside_the_model_on_its_gpu_is_kept_there(decoder, monkeypatch):
    cache, texts = TextCache(decoder, 2), [[1, 2], [3, 4, 5]]
    needed = cache.predicted_bytes(texts)
    monkeypatch.setattr(cache.store, "free_bytes", lambda: 0)
    monkeypatch.setattr(text_cache, "free_on_gpu", lambda device: 2 * needed - 1)
    with pytest.raises(ConfigError, match="2 texts take"):
        cache.check_room(texts)
    monkeypatch.setattr(text_cache, "free_on_gpu", lambda device: 2 * needed)
    cache.check_room(texts)
    assert cache.place == decoder.embeddings.weight.device


@pytest.mark.gpu
@pytest.mark.parametrize("fits", [True, False])
def test_on_a_gpu_the_stream_is_the_same_wherever_it_lies(fits, monkeypatch):
    decoder = Decoder(tiny_family("mistral").cuda())
    batch = {name: tiny_batch()[name].cuda() for name in ("input_ids", "attention_mask")}
    cache = TextCache(decoder)
    if not fits:
        monkeypatch.setattr(text_cache, "free_on_gpu", lambda device: 0)
    texts = texts_of(*batch.values())
    cache.check_room(texts)
    cache.add(texts)
    assert {t.device.type for t in cache.store[texts[0]].tensors()} == {"cuda" if fits else "cpu"}
    found = cache.read(*batch.values())
    assert {found.states.device.type, found.keys_values[0][0].device.type} == {"cuda"}
    expected = read_text(decoder, decoder.embeddings(batch["input_ids"]), batch["attention_mask"])
    assert_close(found.states, expected.states, rtol=1e-4, atol=1e-4)


def test_bad_input_is_refused(decoder):
    with pytest.raises(ConfigError, match="text_cache_dtype='fp8': expected one of 'float32', 'bfloat16'"):
        TextCache(decoder, 1, storage="fp8")
    with pytest.raises(ConfigError, match="a text has no tokens"):
        TextCache(decoder, 1).add([[], [3]])


@torch.no_grad()
@pytest.mark.parametrize("storage", [None, "bfloat16", "int8"])
def test_size_is_foretold_exactly(decoder, storage):
    texts = [[1], [2, 3, 4], [5, 6], [5, 6]]
    cache = TextCache(decoder, 2, storage=storage)
    foretold = cache.predicted_bytes(texts)
    cache.add(texts)
    assert cache.store.nbytes == cache.nbytes == foretold
