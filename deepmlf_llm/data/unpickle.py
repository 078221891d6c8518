"""Reads data pickles without ever running what is in them.

A pickle is a program. The field ships its data sets as pickles all the same, so this reader gives that program nothing
to run: it knows the few names that numpy arrays and plain containers are written with, answers each of them with an
inert stand-in of ours (never with numpy's own constructor: ``dtype.__setstate__`` can be talked into reading bytes as
object pointers), and refuses everything else by name. Instructions that plain data never need (persistent ids,
extension codes, ``NEWOBJ``) are refused as well. There is no fallback to an unsafe load.
"""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal, NoReturn

import numpy as np

from deepmlf_llm.errors import DataError

DTYPE_KINDS = "biufcSUO"
"""Booleans, numbers, bytes, strings, and object arrays (of values that obey the same rules)."""

LARGEST_CODE_POINT = 0x10FFFF

# What data pickles are written with, protocols 0 to 5. Named one by one, so that a new opcode of a later Python is
# refused until somebody has thought about it.
_OPCODES = """
    MARK STOP POP POP_MARK DUP FLOAT INT BININT BININT1 BININT2 LONG LONG1 LONG4 NONE REDUCE STRING BINSTRING
    SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 APPEND APPENDS BUILD GLOBAL STACK_GLOBAL DICT
    EMPTY_DICT LIST EMPTY_LIST GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE SETITEM SETITEMS TUPLE EMPTY_TUPLE
    TUPLE1 TUPLE2 TUPLE3 BINFLOAT PROTO NEWTRUE NEWFALSE BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_SET ADDITEMS FROZENSET
    FRAME
""".split()  # noqa: SIM905


class _Constructor:
    """Stands in for one allowed name: can be called, cannot be changed by the pickle (``BUILD`` on it is refused)."""

    __slots__ = ("build", "name")
    build: Callable[..., Any]
    name: str

    def __init__(self, name: str, build: Callable[..., Any]) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "build", build)

    def __call__(self, *args: Any) -> Any:
        return self.build(*args)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise DataError(f"the pickle tries to change {self.name}")

    def __setstate__(self, state: Any) -> NoReturn:
        raise DataError(f"the pickle tries to change {self.name}")


class _Dtype:
    """A numpy dtype as the pickle describes it; only simple ones (no fields, no sub-arrays)."""

    def __init__(self, text: Any, *_: Any) -> None:
        if isinstance(text, bytes):
            text = text.decode("ascii")
        if not isinstance(text, str) or not text.lstrip("<>=|")[:1].isalpha() or len(text) > 16:
            raise DataError(f"unsupported array dtype {text!r}")
        self.dtype = np.dtype(text)
        if self.dtype.kind not in DTYPE_KINDS or self.dtype.fields or self.dtype.subdtype:
            raise DataError(f"unsupported array dtype {text!r}")

    def __setstate__(self, state: Any) -> None:
        order, subdtype, names, fields = state[1:5]
        if isinstance(order, bytes):
            order = order.decode("ascii")
        if order not in ("<", ">", "=", "|") or subdtype is not None or names or fields:
            raise DataError("unsupported structured array dtype")
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """A numpy array as the pickle describes it; ``value`` is the array, checked against its own shape."""

    def __init__(self) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        shape, dtype, fortran, data = state[-4:]
        self.fill(data, dtype, shape, "F" if fortran else "C")

    def fill(self, data: Any, dtype: _Dtype, shape: Any, order: Literal["C", "F"]) -> None:
        if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple):
            raise DataError("array without a proper dtype and shape")
        if any(type(size) is not int or size < 0 for size in shape):
            raise DataError(f"impossible array shape {shape}")
        count = math.prod(shape)
        if dtype.dtype.kind == "O":
            if not isinstance(data, list) or len(data) != count:
                raise DataError(f"object array of shape {shape} without its {count} values")
            flat = np.fromiter(data, dtype=object, count=count)
        else:
            flat = _flat_array(data, dtype.dtype, count)
        self.value = flat.reshape(shape, order=order)


def _flat_array(data: Any, dtype: np.dtype, count: int) -> np.ndarray:
    if isinstance(data, str):  # Python 2 wrote raw bytes as a string, which latin1 gives back unchanged
        data = data.encode("latin1")
    if not isinstance(data, bytes) or len(data) != count * dtype.itemsize or (count and not dtype.itemsize):
        raise DataError(f"array data do not fill {count} values of {dtype}")
    if not count:
        return np.zeros(0, dtype=dtype)
    flat = np.frombuffer(data, dtype=dtype)
    if dtype.kind == "U" and flat.view(np.dtype(np.uint32).newbyteorder(dtype.byteorder)).max() > LARGEST_CODE_POINT:
        raise DataError("string array holds what is no character")
    return flat


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any = "C", *_: Any) -> _Array:
    array = _Array()
    array.fill(data, dtype, shape, "F" if order == "F" else "C")
    return array


def _scalar(dtype: Any, data: Any = None, *_: Any) -> Any:
    if not isinstance(dtype, _Dtype):
        raise DataError("numpy scalar without a proper dtype")
    return data if dtype.dtype.kind == "O" else _flat_array(data, dtype.dtype, 1)[0]


def _encode(text: Any, encoding: Any = None, *_: Any) -> bytes:
    """How protocols 0 to 2 write bytes: ``_codecs.encode("...", "latin1")``, and nothing but that."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise DataError(f"unexpected text encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How the same protocols write empty bytes; ``bytes(n)`` would allocate what the file says."""
    return b""


def _inert(*_: Any) -> NoReturn:
    raise DataError("the pickle calls numpy.ndarray itself")


def _plain_dict(*args: Any) -> dict[Any, Any]:
    """``OrderedDict(items)`` and ``defaultdict(factory)``; the factory is not kept."""
    return dict(args[0]) if args and isinstance(args[0], (list, dict)) else {}


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _inert,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): _plain_dict,
    ("collections", "defaultdict"): _plain_dict,
}
for _numpy in ("numpy.core", "numpy._core"):  # before and since numpy 2
    _ALLOWED[f"{_numpy}.multiarray", "_reconstruct"] = _reconstruct
    _ALLOWED[f"{_numpy}.multiarray", "scalar"] = _scalar
    _ALLOWED[f"{_numpy}.numeric", "_frombuffer"] = _from_buffer
for _builtins in ("builtins", "__builtin__"):
    for _kind in (list, dict, tuple, set, frozenset):
        _ALLOWED[_builtins, _kind.__name__] = _kind
    _ALLOWED[_builtins, "bytes"] = _no_bytes


_REASONS = {
    EOFError: "it ends too early",
    KeyError: "an instruction that data never need",
    IndexError: "no sense in it",
}


class _Bounded:
    """A file that never promises more bytes than it has: a damaged length cannot ask for terabytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = os.fstat(file.fileno()).st_size

    def read(self, size: int) -> bytes:
        if size > self._left:
            raise EOFError
        self._left -= size
        return self._file.read(size)

    def readline(self) -> bytes:
        line = self._file.readline()
        self._left -= len(line)
        return line


# The unpickler in Python, not the one in C: its instructions can be restricted, and a damaged memo index costs it a
# dictionary entry and not an allocation of gigabytes. Arrays are single instructions, so it is fast enough.
class _DataUnpickler(pickle._Unpickler):
    append: Callable[[Any], None]  # both set by the base class when loading begins
    read: Callable[[int], bytes]

    dispatch: ClassVar[dict[int, Callable[..., Any]]] = {
        code: pickle._Unpickler.dispatch[code] for code in (getattr(pickle, name)[0] for name in _OPCODES)
    }

    def load_bytearray8(self) -> None:
        """How protocol 5 writes a writable array; through ``read``, which does not trust the length."""
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def find_class(self, module: str, name: str) -> _Constructor:
        if (module, name) not in _ALLOWED:
            raise DataError(
                f"refused: it refers to {module}.{name}, and a data pickle may hold numpy arrays and plain "
                "containers only; nothing of it was executed"
            )
        return _Constructor(f"{module}.{name}", _ALLOWED[module, name])


def load_pickle(path: Path) -> Any:
    """What a data pickle holds: numpy arrays and scalars, plain containers, strings and numbers.

    Arrays are read-only views of the file's bytes: no second copy of the data is made.

    Args:
        path: the pickle, any protocol, written by Python 2 or 3 and numpy 1 or 2.

    Raises:
        DataError: no such file; damaged or no pickle; or it refers to anything that is not data, in which case the
            message names it and nothing of it was executed.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            tree = _DataUnpickler(_Bounded(file), encoding="latin1").load()
        return _resolve(tree, {})
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # a hostile or damaged file can fail in any way: one error type for all of them
        reason = _REASONS.get(type(error)) or f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: no pickle, or a damaged one ({reason})") from None


def _resolve(value: Any, seen: dict[int, Any]) -> Any:
    """Puts the finished arrays in the place of their descriptions, in containers in place."""
    if isinstance(value, (_Constructor, _Dtype)):
        raise DataError("the pickle holds a constructor where data should be")
    if id(value) in seen:
        return seen[id(value)][1]
    if isinstance(value, _Array):
        if value.value is None:
            raise DataError("the pickle holds an array without data")
        array = value.value
        seen[id(value)] = (value, array)  # the description is kept too: its id must not be given to another object
        if array.dtype == object:
            for index, item in enumerate(array.flat):
                array.flat[index] = _resolve(item, seen)
        return array
    if isinstance(value, (list, dict)):
        seen[id(value)] = (value, value)
        for key, item in list(enumerate(value) if isinstance(value, list) else value.items()):
            if isinstance(key, (_Constructor, _Dtype, _Array)):
                raise DataError("the pickle holds a key that is no data")
            value[key] = _resolve(item, seen)
        return value
    if isinstance(value, (tuple, set, frozenset)):
        resolved = type(value)(_resolve(item, seen) for item in value)
        seen[id(value)] = (value, resolved)
        return resolved
    return value
