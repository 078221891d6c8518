"""Nothing in a pickle ever runs; what is data comes back as it was; what is damaged is one error."""

from __future__ import annotations

import collections
import io
import os
import pickle
import pickletools
import re
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepmlf_llm.data import pickle_budget
from deepmlf_llm.data.unpickle import load_pickle
from deepmlf_llm.errors import DataError

SAMPLE = {
    "numbers": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.linspace(-1, 1, 6).astype(np.float16).reshape(2, 3),
    "column_major": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big_endian": np.arange(4, dtype=">i4"),
    "empty": np.empty((0, 3), dtype=np.float32),
    "infinite": np.array([np.nan, np.inf, -np.inf]),
    "texts": np.array(["one", "two words", "drei \u00e4"]),
    "objects": np.array(["a", "bc", None], dtype=object),
    "ragged": np.array([np.zeros((2, 3)), np.ones((1, 3))], dtype=object),
    "scalar": np.float64(2.5),
    "bytes": b"\x00\xff",
    "plain": [1, 2.5, True, None, "text", (1, (2, 3)), {4, 5}, frozenset({6}), -(10**30)],
    "ordered": collections.OrderedDict(a=1),
    "default": collections.defaultdict(list, b=2),
}


def assert_same(actual: Any, expected: Any) -> None:
    if isinstance(expected, np.ndarray) and expected.dtype == object:
        assert actual.dtype == object
        assert actual.shape == expected.shape
        for a, e in zip(actual.flat, expected.flat, strict=True):
            assert_same(a, e)
    elif isinstance(expected, np.ndarray):
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected)
    elif isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key in expected:
            assert_same(actual[key], expected[key])
    else:
        assert actual == expected


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_data_come_back_as_they_were(write_pickle, protocol):
    assert_same(load_pickle(write_pickle(SAMPLE, protocol=protocol)), SAMPLE)


@pytest.mark.parametrize("protocol", [2, 4])
def test_both_numpy_module_paths_are_read(write_pickle, protocol):
    content = pickle.dumps(SAMPLE["numbers"], protocol=protocol)
    old, new = b"numpy.core.multiarray", b"numpy._core.multiarray"
    present, other = (new, old) if new in content else (old, new)
    if protocol == 4:  # a short string carries its length in the byte before it, and the frame its own
        content = content.replace(bytes([len(present)]) + present, bytes([len(other)]) + other)
        size = struct.unpack("<Q", content[3:11])[0] + len(other) - len(present)
        content = content[:3] + struct.pack("<Q", size) + content[11:]
    else:
        content = content.replace(present, other)
    assert_same(load_pickle(write_pickle(content)), SAMPLE["numbers"])


def test_python_2_pickles_are_read(write_pickle):
    # pickle.dumps({"a": np.array([1., 2.])}, 2) of Python 2: raw bytes are strings there
    raw = np.array([1.0, 2.0]).tobytes()
    content = (
        b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + b"U"
        + bytes([len(raw)])
        + raw
        + b"tbs."
    )
    assert_same(load_pickle(write_pickle(content)), {"a": np.array([1.0, 2.0])})


class Calls:
    """Pickles into a call of anything."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def attacks(marker: Path) -> dict[str, Any]:
    write = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    return {
        "os.system": Calls(os.system, f"touch {marker}"),
        "builtins.eval": Calls(eval, write),
        "builtins.exec": Calls(exec, write),
        "builtins.getattr": Calls(getattr, "text", "upper"),
        "subprocess.Popen": Calls(subprocess.Popen, ["touch", str(marker)]),
        "builtins.open": Calls(open, str(marker), "w"),
        "pathlib": Path(marker),
        "numpy.fromfile": Calls(np.fromfile, "/etc/hostname"),
        "numpy.save": Calls(np.save, str(marker), 1),
        "numpy.load": Calls(np.load, "/etc/hostname", None, True),
        "numpy.memmap": Calls(np.memmap, str(marker), "u1", "w+", 0, 4),
        "operator.attrgetter": Calls(__import__("operator").attrgetter, "system"),
        "functools.partial": Calls(__import__("functools").partial, print),
    }


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("attack", list(attacks(Path("x"))))
def test_a_pickle_that_calls_anything_is_refused_unexecuted(tmp_path, write_pickle, attack, protocol):
    marker = tmp_path / "executed.npy"
    path = write_pickle({"train": attacks(marker)[attack]}, protocol=protocol)
    with pytest.raises(DataError, match=r"refused: it refers to \S+\.\S+, and a data pickle may hold"):
        load_pickle(path)
    assert not marker.exists()


def test_the_refused_name_is_told(write_pickle):
    with pytest.raises(DataError, match=r"source\.pkl: refused: it refers to (posix|nt)\.system"):
        load_pickle(write_pickle(Calls(os.system, "true")))


def test_an_object_of_a_class_is_refused(write_pickle):
    with pytest.raises(DataError, match=r"fractions\.Fraction"):
        load_pickle(write_pickle(__import__("fractions").Fraction(1, 3)))


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
EMPTY_ARRAY = RECONSTRUCT + b"(cnumpy\nndarray\n(I0\ntS'b'\ntR"


def crafted_array(dtype: bytes, shape: bytes, data: bytes, dtype_state: bytes = b"") -> bytes:
    """The program that numpy writes for an array, with whatever an attacker would put into it."""
    described = b"cnumpy\ndtype\n(S'" + dtype + b"'\nI0\nI1\ntR" + dtype_state
    return EMPTY_ARRAY + b"(I1\n(" + shape + b"t" + described + b"I00\n" + data + b"tb."


CRAFTED = {
    "dtype whose state claims that it holds no objects, over raw pointers": (
        crafted_array(b"O8", b"I1\n", b"S'AAAAAAAA'\n", b"(I3\nS'|'\nNNNI-1\nI-1\nI0\ntb"),
        "object array of shape (1,) without its 1 values",
    ),
    "dtype whose state makes it a structure": (
        crafted_array(b"V8", b"I1\n", b"S'AAAAAAAA'\n"),
        "unsupported array dtype 'V8'",
    ),
    "dtype with fields in its state": (
        crafted_array(b"f4", b"I1\n", b"S'AAAA'\n", b"(I3\nS'|'\nN(S'a'\nt(dI-1\nI-1\nI0\ntb"),
        "unsupported structured array dtype",
    ),
    "structured dtype": (b"cnumpy\ndtype\n(S'f4,f4'\ntR.", "unsupported array dtype 'f4,f4'"),
    "BUILD on an allowed function": (
        RECONSTRUCT + b"(N(dS'__code__'\nI1\nstb.",
        "the pickle tries to change numpy.core.multiarray._reconstruct",
    ),
    "BUILD on an allowed class": (b"cnumpy\nndarray\n(dS'x'\nI1\nsb.", "the pickle tries to change numpy.ndarray"),
    "ndarray itself called": (b"cnumpy\nndarray\n((I100000000000\nttR.", "the pickle calls numpy.ndarray itself"),
    "a constructor left in the data": (b"(lcnumpy\nndarray\na.", "a constructor where data should be"),
    "a constructor as a key": (b"(dcnumpy\nndarray\nI1\ns.", "a key that is no data"),
    "bytes of a claimed length by a call": (b"c__builtin__\nbytes\n(I400000000000\ntR.", "TypeError"),
    "another codec": (b"c_codecs\nencode\n(Vabc\nS'rot13'\ntR.", "unexpected text encoding 'rot13'"),
    "persistent id": (b"Pabc\n.", "an instruction that data never need"),
    "extension code": (b"\x80\x02\x82\x01.", "an instruction that data never need"),
    "NEWOBJ": (b"\x80\x02cnumpy\ndtype\n(S'f4'\nt\x81.", "an instruction that data never need"),
    "INST": (b"(S'f4'\ninumpy\ndtype\n.", "an instruction that data never need"),
    "out-of-band buffer": (b"\x80\x05\x97.", "an instruction that data never need"),
    "bytearray of a claimed length": (b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.", "it ends too early"),
    "bytes of a claimed length": (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.", "it ends too early"),
    "frame of a claimed length": (b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f.", "it ends too early"),
    "array of more values than its data": (
        crafted_array(b"f4", b"I4000000000\n", b"S'AAAA'\n"),
        "array data do not fill 4000000000 values of float32",
    ),
    "array of values of no size": (
        crafted_array(b"S0", b"I4000000000000\n", b"S''\n"),
        "array data do not fill 4000000000000 values",
    ),
    "negative shape": (crafted_array(b"f4", b"I-1\nI-1\n", b"S'AAAA'\n"), "impossible array shape (-1, -1)"),
    "shape that is no numbers": (crafted_array(b"f4", b"F1.0\n", b"S'AAAA'\n"), "impossible array shape (1.0,)"),
    "array without data": (EMPTY_ARRAY + b".", "an array without data"),
    "string array of what is not a character": (
        crafted_array(b"<U1", b"I1\n", rb"S'\xff\xff\xff\xff'" + b"\n"),
        "string array holds what is not a character",
    ),
    "nothing": (b"", "it ends too early"),
    "no pickle": (b"PK\x03\x04 a zip file, or a torch checkpoint", "no pickle, or a damaged one"),
    "a table": (b"video_id,clip_id,text,label\n", "no pickle, or a damaged one"),
}


@pytest.mark.parametrize("what", CRAFTED)
def test_crafted_and_foreign_files_are_one_error(write_pickle, what):
    content, message = CRAFTED[what]
    with pytest.raises(DataError, match=r"source\.pkl: .*" + re.escape(message)):
        load_pickle(write_pickle(content))


def test_what_the_crafted_arrays_are_made_of_is_read_when_it_is_honest(write_pickle):
    honest = crafted_array(
        b"f4", b"I2\n", rb"S'\x00\x00\x80?\x00\x00\x00\xc0'" + b"\n", b"(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
    )
    np.testing.assert_array_equal(load_pickle(write_pickle(honest)), np.array([1.0, -2.0], dtype=np.float32))


def test_a_deep_pickle_is_an_error_not_a_crash(write_pickle):
    with pytest.raises(DataError, match="nested more than 64 levels deep"):
        load_pickle(write_pickle(b"]" * 100_000 + b"a" * 99_999 + b"."))


def test_what_is_shared_stays_shared(write_pickle):
    array = np.arange(3)
    loaded = load_pickle(write_pickle([array, array, (array,)]))
    assert loaded[0] is loaded[1] is loaded[2][0]
    np.testing.assert_array_equal(loaded[0], array)


def test_a_container_that_holds_itself_is_refused(write_pickle):
    cyclic: list[Any] = [1]
    cyclic.append((cyclic,))
    with pytest.raises(DataError, match="holds itself"):
        load_pickle(write_pickle(cyclic))


PUT, GET = pickle.MEMOIZE, pickle.BINGET
ARRAY = pickle.dumps(np.zeros(50_000, np.float32), protocol=4)[:-1]  # left on the stack, 200 kB


def text_of(length: int) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", length) + b"x" * length


def colliding(count: int) -> bytes:
    """Whole numbers that Python hashes to 0, as the keys of a dictionary."""
    numbers = ((i * (2**61 - 1)).to_bytes(12, "little") for i in range(1, count))
    return b"\x80\x04}(" + b"".join(pickle.LONG1 + b"\x0c" + number + b"N" for number in numbers) + b"u."


NAME = b"cbuiltins\nlist\n"
ENCODE = b"c_codecs\nencode\n"
DEAR = {  # small files -> what would take minutes or gigabytes, and what is said
    "a tuple's hash": (b"\x80\x04}(N" + b"2\x86" * 60 + b"Nu.", "a key that is no data: tuple"),
    "a tuple's hash in a set": (b"\x80\x04\x8f(N" + b"2\x86" * 60 + b"\x90.", "a key that is no data: tuple"),
    "a tuple's hash in a frozen set": (b"\x80\x04(N" + b"2\x86" * 60 + b"\x91.", "a key that is no data: tuple"),
    "a tuple's hash, by call": (b"\x80\x04cbuiltins\nset\n(N" + b"2\x86" * 60 + b"l\x85R.", "no data: tuple"),
    "a tuple's hash, as items": (
        b"\x80\x02ccollections\nOrderedDict\n(N" + b"2\x86" * 60 + b"N\x86l\x85R.",
        "a key that is no data: tuple",
    ),
    "a tuple's hash, one item": (b"\x80\x04}N" + b"2\x86" * 60 + b"Ns.", "a key that is no data: tuple"),
    "keys that collide": (colliding(100_000), "a key that is no data: a huge number"),
    "lists of lists": (b"\x80\x04N" + b"2\x86" * 60 + b".", "the same objects over and over"),
    "one array, many times": (b"\x80\x04(" + ARRAY[2:] + b"2" * 100_000 + b"l.", "the same objects over and over"),
    "a list, copied": (
        b"\x80\x04" + NAME + PUT + b"0](" + b"N" * 50_000 + b"e" + PUT + b"0(" + b"h\x00h\x01\x85R" * 50_000 + b"l.",
        "copies the same data over and over",
    ),
    "a text, encoded": (
        b"\x80\x04" + ENCODE + PUT + b"0" + text_of(100_000) + b"X\x06\x00\x00\x00latin1\x86" + PUT + b"0("
        + b"h\x00h\x01R" * 50_000 + b"l.",
        "copies the same data over and over",
    ),
    "a long number": (b"\x80\x04\x8b" + struct.pack("<i", 100_000) + b"\x01" * 100_000 + b".", "never need"),
    "a long number as text": (b"L0x" + b"f" * 100_000 + b"L\n.", "a number of 100003 characters"),
    "an array of many dimensions": (
        crafted_array(b"f4", b"I1\n" * 10_000, b"S''\n", b"(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"),
        "impossible array shape of 10000 dimensions",
    ),
    "a long name": (b"c" + b"x" * 100_000 + b"\ny\n.", "refused: it refers to " + "x" * 80 + "."),
    "state for a number": (b"\x80\x04K\x01}b.", "tries to change a int"),
    "a call of a number": (b"\x80\x04K\x01)R.", "calls a int"),
}  # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.parametrize("what", DEAR)
def test_a_small_file_takes_neither_minutes_nor_gigabytes(write_pickle, what):
    content, message = DEAR[what]
    assert len(content) < 2 << 20
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=re.escape(message)) as raised:
            load_pickle(write_pickle(content))
        assert tracemalloc.get_traced_memory()[1] < 1 << 30
    finally:
        tracemalloc.stop()
    assert len(str(raised.value)) < 1000


def test_instructions_are_counted(write_pickle, monkeypatch):
    monkeypatch.setattr(pickle_budget, "INSTRUCTIONS", 1000)
    assert load_pickle(write_pickle(list(range(300)))) == list(range(300))
    with pytest.raises(DataError, match="instructions: data of that size come as arrays"):
        load_pickle(write_pickle(b"\x80\x04" + b"N0" * 1000 + b"N."))


def test_padding_that_rows_share_is_read(write_pickle):
    """What real files share: one array of zeros wherever a modality is missing, one short text for many rows."""
    padding, label = np.zeros((50, 35), np.float32), "neutral"
    loaded = load_pickle(write_pickle({"vision": [padding] * 2000, "labels": [label] * 2000, "rows": {1: 2, 2.5: 3}}))
    assert len(loaded["vision"]) == 2000
    assert loaded["rows"] == {1: 2, 2.5: 3}


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_pickle(tmp_path / "absent.pkl")


def test_arrays_are_views_of_the_file(write_pickle):
    assert not load_pickle(write_pickle(np.zeros(5))).flags.writeable


CONTENT = {protocol: pickle.dumps(SAMPLE, protocol=protocol) for protocol in (2, 4, 5)}
ALLOWED_TYPES = (np.ndarray, np.generic, list, dict, tuple, set, frozenset, str, bytes, int, float, complex, type(None))


def only_data(value: Any, depth: int = 0) -> bool:
    if not isinstance(value, ALLOWED_TYPES):
        return False
    if depth > 5 or isinstance(value, (str, bytes, np.generic)):
        return True
    if isinstance(value, np.ndarray):
        return value.dtype != object or all(only_data(item, depth + 1) for item in value.flat)
    items = [*value, *value.values()] if isinstance(value, dict) else value if hasattr(value, "__iter__") else ()
    return all(only_data(item, depth + 1) for item in items)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), protocol=st.sampled_from(sorted(CONTENT)))
def test_damaged_pickles_are_one_error_or_plain_data(tmp_path, data, protocol):
    content = bytearray(CONTENT[protocol])
    for _ in range(data.draw(st.integers(0, 4), label="bytes changed")):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(0, len(content)), label="cut at") :]
    path = tmp_path / "damaged.pkl"
    path.write_bytes(content)
    try:
        loaded = load_pickle(path)
    except DataError:
        return
    assert only_data(loaded)


def test_every_instruction_of_data_pickles_is_one_of_ours():
    used = {
        op.name for protocol in range(6) for op, _, _ in pickletools.genops(pickle.dumps(SAMPLE, protocol=protocol))
    }
    assert not used & {"NEWOBJ", "NEWOBJ_EX", "INST", "OBJ", "PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4"}


def test_a_claimed_memo_index_costs_no_memory(tmp_path):
    """The unpickler in C allocates for the largest memo index that a file names: 64 GiB for these 9 bytes."""
    path = tmp_path / "memo.pkl"
    path.write_bytes(b"\x80\x02Nr\xff\xff\xff\xff.")
    script = (
        "import resource, sys; from pathlib import Path; from deepmlf_llm.data.unpickle import load_pickle;"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)); print(load_pickle(Path(sys.argv[1])))"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


def test_bounded_reader_counts_lines_too(write_pickle):
    content = io.BytesIO()
    pickle.dump(list(range(50)), content, protocol=0)
    assert load_pickle(write_pickle(content.getvalue())) == list(range(50))


def test_object_arrays_in_fortran_order_keep_their_places(write_pickle):
    values = np.asfortranarray(np.arange(6).reshape(2, 3).astype(object))  # as pandas lays its tables out
    np.testing.assert_array_equal(load_pickle(write_pickle({"a": values}))["a"], values)
