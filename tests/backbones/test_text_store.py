"""What is kept is what comes back, whatever instant a writer was killed at and however many there are."""

from __future__ import annotations

import json
import multiprocessing
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepmlf_llm.backbones.disk_store import DiskStore
from deepmlf_llm.backbones.text_store import STORAGE, MemoryStore, TextRecord, pack, unpacked
from deepmlf_llm.errors import ConfigError

KEY = {"base": {"family": "llama"}, "depth": 2}


def entry(length, storage=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keys_values = torch.randn(2, 2, 3, length, 4, generator=generator)
    return pack(keys_values, torch.randn(length, 6, generator=generator), storage), keys_values


@pytest.mark.parametrize("storage", [None, *STORAGE])
@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_what_is_put_comes_back(kind, storage, tmp_path):
    store = MemoryStore() if kind == "memory" else DiskStore(tmp_path, KEY)
    entries = {tuple(range(n)): entry(n, storage, n)[0] for n in (1, 5, 2)}
    store.put(list(entries.items()))
    assert len(store) == 3
    assert store.nbytes == sum(e.nbytes for e in entries.values())
    for text, expected in entries.items():
        assert text in store
        for a, b in zip(store[text].tensors(), expected.tensors(), strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
    assert (9, 9) not in store


@given(st.integers(1, 6), st.floats(1e-3, 1e3))
@pytest.mark.cpu
def test_int8_is_within_half_a_step_of_each_rows_largest(length, scale):
    _, keys_values = entry(length)
    kept = pack(keys_values * scale, torch.zeros(length, 6), "int8")
    error = (unpacked(kept) - keys_values * scale).abs()
    step = (keys_values * scale).abs().amax(-1, keepdim=True) / 127
    assert (error <= 0.5001 * step).all()
    assert kept.keys_values.dtype == torch.int8
    assert torch.equal(
        unpacked(pack(torch.zeros(1, 2, 1, 2, 3), torch.zeros(2, 6), "int8")), torch.zeros(1, 2, 1, 2, 3)
    )


@pytest.mark.parametrize("storage", [None, *STORAGE])
@pytest.mark.parametrize("lowest", [0, 1, 3])
def test_what_is_written_down_layer_by_layer_is_what_is_packed_at_once(storage, lowest):
    lengths, longest = [2, 5, 3], 5
    batch, states = torch.randn(3, 2, 3, 4, longest, 6), torch.randn(3, longest, 8)  # [layers x 2 x b x h x l x e]
    record = TextRecord(lowest, 3 - lowest, storage)
    for layer, (keys, values) in enumerate(batch):
        record.write(layer, keys, values)
    entries = record.entries(lengths, states, torch.device("cpu"))
    for row, (n, found) in enumerate(zip(lengths, entries, strict=True)):
        expected = pack(batch[lowest:, :, row, :, -n:], states[row, -n:], storage)
        assert torch.equal(found.states, expected.states)
        if lowest == 3:
            assert found.keys_values.numel() == 0
            continue
        for a, b in zip(found.tensors(), expected.tensors(), strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
        assert found.nbytes == expected.nbytes


def test_another_run_and_another_process_find_it(tmp_path):
    first, second = DiskStore(tmp_path, KEY), DiskStore(tmp_path, KEY)
    first.put([((1, 2), entry(2)[0])])
    assert (1, 2) in second
    second.put([((3,), entry(1)[0])])
    assert (3,) in first
    again = DiskStore(tmp_path, KEY)
    assert len(again) == 2
    assert torch.equal(again[(1, 2)].keys_values, entry(2)[0].keys_values)
    assert (1, 2) not in DiskStore(tmp_path, {**KEY, "depth": 3})


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_what_is_missing_is_told_with_one_look_into_the_directory(kind, tmp_path, monkeypatch):
    store = MemoryStore() if kind == "memory" else DiskStore(tmp_path, KEY)
    store.put([((1, 2), entry(2)[0])])
    looks = []
    if kind == "disk":
        DiskStore(tmp_path, KEY).put([((3,), entry(1)[0])])  # another process has written since
        refresh = store.refresh
        monkeypatch.setattr(store, "refresh", lambda: (looks.append(1), refresh()))
    assert store.missing({(1, 2), (3,), (4,), (5,)}) == ({(4,), (5,)} | ({(3,)} if kind == "memory" else set()))
    assert store.missing({(1, 2)}) == store.missing(set()) == set()
    assert len(looks) == (kind == "disk")


@pytest.mark.cpu
def test_processes_fill_one_store_at_the_same_time(tmp_path):
    store = DiskStore(tmp_path, KEY)
    store.put([((0,), entry(1)[0])])

    def fill(store, which):
        for number in range(which, 40, 2):
            store.put([((which, number), entry(1 + number % 5, seed=number)[0])])

    fork = multiprocessing.get_context("fork")  # children that inherit a store in use, its open shard included
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # Python 3.12 on forking with threads: these compute nothing
        writers = [fork.Process(target=fill, args=(store, which)) for which in (0, 1)]
        for writer in writers:
            writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert len(list(store.directory.glob("*.data"))) == 3
    for reader in (store, DiskStore(tmp_path, KEY)):
        for number in range(40):
            assert (number % 2, number) in reader
            expected = entry(1 + number % 5, seed=number)[0]
            assert torch.equal(reader[(number % 2, number)].keys_values, expected.keys_values)
            assert torch.equal(reader[(number % 2, number)].states, expected.states)
    assert len(DiskStore(tmp_path, KEY)) == 41


@pytest.mark.parametrize("cut", ["index line", "data without index", "index not yet"])
def test_a_killed_writer_costs_what_it_had_not_finished(tmp_path, cut):
    store = DiskStore(tmp_path, KEY)
    store.put([((1, 2), entry(2)[0])])
    index = next(store.directory.glob("*.index"))
    if cut == "index line":
        with index.open("a") as file:
            file.write('[[7, 7], 123, [["flo')
    elif cut == "data without index":
        with next(store.directory.glob("*.data")).open("ab") as file:
            file.write(b"half an entry")
    else:
        (store.directory / "another.data").write_bytes(b"an entry whose index was never written")
    again = DiskStore(tmp_path, KEY)
    assert len(again) == 1
    assert (7, 7) not in again
    again.put([((4,), entry(1)[0])])
    fresh = DiskStore(tmp_path, KEY)
    assert len(fresh) == 2
    assert torch.equal(fresh[(1, 2)].states, entry(2)[0].states)


def test_a_writer_that_goes_on_after_a_torn_line_costs_that_entry_only(tmp_path):
    """A full disk, and then not: the next line follows the torn one without a break."""
    store = DiskStore(tmp_path, KEY)
    store.put([((1, 2), entry(2)[0])])
    with next(store.directory.glob("*.index")).open("a") as file:
        file.write('[[7, 7], 123, [["flo')
    store.put([((4,), entry(1)[0])])
    store.put([((5,), entry(1)[0])])
    for reader in (store, DiskStore(tmp_path, KEY)):
        assert [text in reader for text in ((1, 2), (7, 7), (4,), (5,))] == [True, False, False, True]
        assert torch.equal(reader[(5,)].states, entry(1)[0].states)


def test_a_full_shard_is_closed(tmp_path):
    store = DiskStore(tmp_path, KEY, shard_bytes=1)
    for n in (1, 2, 3):
        store.put([(tuple(range(n)), entry(n)[0])])
    assert len(list(store.directory.glob("*.data"))) == 3
    assert len(DiskStore(tmp_path, KEY)) == 3


def test_a_folder_of_another_key_under_the_same_name_is_refused(tmp_path):
    store = DiskStore(tmp_path, KEY)
    (store.directory / "key.json").write_text(json.dumps({"format": 0}))
    with pytest.raises(ConfigError, match="another key under the same hash; delete that folder"):
        DiskStore(tmp_path, KEY)


DAMAGES = {
    "a flipped byte": lambda data, index: data.write_bytes(data.read_bytes()[:-3] + b"\x7f" + data.read_bytes()[-2:]),
    "a truncated file": lambda data, index: data.write_bytes(data.read_bytes()[:-3]),
    "a missing file": lambda data, index: data.unlink(),
    "an empty file": lambda data, index: data.write_bytes(b""),
    "another text": lambda data, index: index.write_text(index.read_text().replace("[1, 2]", "[1, 3]")),
    "another shape": lambda data, index: index.write_text(index.read_text().replace("[2, 6]", "[1, 6]")),
    "an unknown dtype": lambda data, index: index.write_text(index.read_text().replace("float32", "load")),
    "no numbers": lambda data, index: index.write_text('[["a"], {}, null]\n7\n[[1, 2], -5, [], 0]\n'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_as_if_it_were_not_there_and_is_written_again(damage, tmp_path):
    store = DiskStore(tmp_path, KEY)
    store.put([((1, 2), entry(2)[0])])
    DAMAGES[damage](next(store.directory.glob("*.data")), next(store.directory.glob("*.index")))
    again = DiskStore(tmp_path, KEY)
    assert again.found([(1, 2), (1, 3)]) == {}
    assert again.missing({(1, 2)}) == {(1, 2)}
    again.put([((1, 2), entry(2)[0])])
    for reader in (again, DiskStore(tmp_path, KEY)):
        assert torch.equal(reader[(1, 2)].keys_values, entry(2)[0].keys_values)
        assert reader.found([(1, 3)]) == {}


def test_a_damaged_key_is_written_again(tmp_path):
    store = DiskStore(tmp_path, KEY)
    store.put([((1, 2), entry(2)[0])])
    (store.directory / "key.json").write_text('{"base"')
    assert len(DiskStore(tmp_path, KEY)) == 1
    assert json.loads((store.directory / "key.json").read_text())["depth"] == KEY["depth"]
