"""What a data pickle may be made of: numpy's arrays and dtypes, plain containers; each an inert stand-in of ours."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NoReturn

import numpy as np

from deepmlf_llm.data.pickle_budget import DEPTH, DIMENSIONS, LARGEST_SIZE, Budget, plain_key
from deepmlf_llm.errors import DataError

DTYPE_KINDS = "biufcSUO"
"""Booleans, numbers, bytes, strings, and object arrays (of values that follow the same rules)."""

LARGEST_CODE_POINT = 0x10FFFF


class Constructor:
    """Stands in for one allowed name: can be called, cannot be changed by the pickle (``BUILD`` on it is refused)."""

    __slots__ = ("budget", "build", "name")
    budget: Budget
    build: Callable[..., Any]
    name: str

    def __init__(self, name: str, build: Callable[..., Any], budget: Budget) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "build", build)
        object.__setattr__(self, "budget", budget)

    def __call__(self, *args: Any) -> Any:
        self.budget.copy(*args)
        return self.build(*args)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise DataError(f"the pickle tries to change {self.name}")

    def __setstate__(self, state: Any) -> NoReturn:
        raise DataError(f"the pickle tries to change {self.name}")


class Dtype:
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


class Array:
    """A numpy array as the pickle describes it; ``value`` is the array, checked against its own shape."""

    def __init__(self) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        shape, dtype, fortran, data = state[-4:]
        self.fill(data, dtype, shape, "F" if fortran else "C")

    def fill(self, data: Any, dtype: Dtype, shape: Any, order: Literal["C", "F"]) -> None:
        if not isinstance(dtype, Dtype) or not isinstance(shape, tuple):
            raise DataError("array without a proper dtype and shape")
        if len(shape) > DIMENSIONS or any(type(size) is not int or not 0 <= size < LARGEST_SIZE for size in shape):
            shown = shape if len(shape) <= DIMENSIONS else f"of {len(shape)} dimensions"
            raise DataError(f"impossible array shape {str(shown)[:100]}")
        count = math.prod(shape)
        if dtype.dtype.kind == "O":
            if not isinstance(data, list) or len(data) != count:
                raise DataError(f"object array of shape {shape} without its {count} values")
            flat, order = np.fromiter(data, dtype=object, count=count), "C"  # numpy lists objects in C order always
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
        raise DataError("string array holds what is not a character")
    return flat


def _reconstruct(*_: Any) -> Array:
    return Array()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any = "C", *_: Any) -> Array:
    array = Array()
    array.fill(data, dtype, shape, "F" if order == "F" else "C")
    return array


def _scalar(dtype: Any, data: Any = None, *_: Any) -> Any:
    if not isinstance(dtype, Dtype):
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
    if not args or not isinstance(args[0], (list, dict)):
        return {}
    return {plain_key(key): value for key, value in (args[0].items() if isinstance(args[0], dict) else args[0])}


def _plain_set(kind: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: kind([plain_key(item) for item in args[0]] if args else [])


def _sequence(kind: Callable[..., Any]) -> Callable[..., Any]:
    """``list(items)`` and ``tuple(items)`` of a container: anything else that can be looped over is not data."""
    return lambda *args: kind(args[0] if args and isinstance(args[0], (list, tuple, set, frozenset)) else ())


ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _inert,
    ("numpy", "dtype"): Dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): _plain_dict,
    ("collections", "defaultdict"): _plain_dict,
}
for _numpy in ("numpy.core", "numpy._core"):  # before and since numpy 2
    ALLOWED[f"{_numpy}.multiarray", "_reconstruct"] = _reconstruct
    ALLOWED[f"{_numpy}.multiarray", "scalar"] = _scalar
    ALLOWED[f"{_numpy}.numeric", "_frombuffer"] = _from_buffer
for _builtins in ("builtins", "__builtin__"):
    ALLOWED[_builtins, "dict"] = _plain_dict
    for _kind in (set, frozenset):
        ALLOWED[_builtins, _kind.__name__] = _plain_set(_kind)
    for _other in (list, tuple):
        ALLOWED[_builtins, _other.__name__] = _sequence(_other)
    ALLOWED[_builtins, "bytes"] = _no_bytes


class Resolver:
    """Puts the finished arrays in the place of their descriptions, in containers in place, and counts what is there."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        # By id: what stood there (kept, so that its id is not given to another object), what stands there now, values
        # and bytes below it as if nothing were shared; None while that is being found out.
        self.seen: dict[int, tuple[Any, Any, tuple[int, int] | None]] = {}

    def resolve(self, value: Any) -> Any:
        """``value`` with arrays in it.

        Raises:
            DataError: it holds what is no data, or itself, is nested too deep, or unfolds into too much.
        """
        return self._resolve(value, 0)[0]

    def _resolve(self, value: Any, depth: int) -> tuple[Any, int, int]:
        if isinstance(value, (Constructor, Dtype)):
            raise DataError("the pickle holds a constructor where data should be")
        if not isinstance(value, (Array, list, dict, tuple, set, frozenset)):
            return value, 1, _length(value)
        known = self.seen.get(id(value))
        if known is not None:
            if known[2] is None:
                raise DataError("the pickle holds a container that holds itself")
            return known[1], *known[2]
        if depth > DEPTH:
            raise DataError(f"the pickle is nested more than {DEPTH} levels deep")
        self.seen[id(value)] = (value, None, None)
        resolved, values, size = self._contents(value, depth + 1)
        self.budget.unfold(values, size)
        self.seen[id(value)] = (value, resolved, (values, size))
        return resolved, values, size

    def _contents(self, value: Any, depth: int) -> tuple[Any, int, int]:
        if isinstance(value, Array):
            if value.value is None:
                raise DataError("the pickle holds an array without data")
            array = value.value
            if array.dtype != object:
                return array, 1, array.nbytes
            found = [self._resolve(item, depth) for item in array.flat]
            for index, (item, _, _) in enumerate(found):
                array.flat[index] = item
            return array, *_total(found)
        if isinstance(value, (list, dict)):
            places = list(enumerate(value) if isinstance(value, list) else value.items())
            found = [self._resolve(item, depth) for _, item in places]
            for (key, _), (item, _, _) in zip(places, found, strict=True):
                value[key] = item
            return value, *_total(found)
        found = [self._resolve(item, depth) for item in value]
        return type(value)(item for item, _, _ in found), *_total(found)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (str, bytes)) else 8


def _total(found: list[tuple[Any, int, int]]) -> tuple[int, int]:
    return 1 + sum(values for _, values, _ in found), 8 + sum(size for _, _, size in found)
