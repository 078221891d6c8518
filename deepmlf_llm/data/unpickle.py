"""Reads data pickles without ever running what is in them.

A pickle is a program. The field ships its data sets as pickles all the same, so this reader gives that program nothing
to run: it knows the few names that numpy arrays and plain containers are written with, answers each of them with an
inert stand-in of ours (never with numpy's own constructor: ``dtype.__setstate__`` can be talked into reading bytes as
object pointers), and refuses everything else by name. Instructions that plain data never need (persistent ids,
extension codes, ``NEWOBJ``) are refused as well. There is no fallback to an unsafe load.

Nor does a small file cost more than its size: what it may take is counted (:class:`_Budget`), keys are plain values
whose hash cannot be chosen at will, and what refers to one object again and again is counted as if it were written out.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from deepmlf_llm.data.pickle_budget import INSTRUCTIONS, LONGEST_NUMBER, Budget, plain_key
from deepmlf_llm.data.pickle_values import ALLOWED, Array, Constructor, Dtype, Resolver
from deepmlf_llm.errors import DataError

# What data pickles are written with, protocols 0 to 5. Named one by one, so that a new opcode of a later Python is
# refused until somebody has thought about it.
_OPCODES = """
    MARK STOP POP POP_MARK DUP FLOAT INT BININT BININT1 BININT2 LONG LONG1 NONE REDUCE STRING BINSTRING
    SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 APPEND APPENDS BUILD GLOBAL STACK_GLOBAL DICT
    EMPTY_DICT LIST EMPTY_LIST GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE SETITEM SETITEMS TUPLE EMPTY_TUPLE
    TUPLE1 TUPLE2 TUPLE3 BINFLOAT PROTO NEWTRUE NEWFALSE BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_SET ADDITEMS FROZENSET
    FRAME
""".split()  # noqa: SIM905


_REASONS = {
    EOFError: "it ends too early",
    KeyError: "an instruction that data never need",
    IndexError: "no sense in it",
}


class Bounded:
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


def _with_keys(code: bytes, step: int) -> Callable[[Any], None]:
    """An instruction on all values since the last mark, every ``step``-th of which becomes a key."""

    def load(unpickler: Any) -> None:
        for value in unpickler.stack[::step]:
            plain_key(value)
        _BASE[code[0]](unpickler)

    return load


_BASE: dict[int, Callable[[Any], None]] = dict(pickle._Unpickler.dispatch)


# The unpickler in Python, not the one in C: its instructions can be restricted and counted, and a damaged memo index
# costs it a dictionary entry and not an allocation of gigabytes. Arrays are single instructions, so it is fast enough.
class _DataUnpickler(pickle._Unpickler):
    append: Callable[[Any], None]  # these are set by the base class when loading begins
    readline: Callable[[], bytes]
    stack: list[Any]
    metastack: list[list[Any]]

    dispatch: ClassVar[dict[int, Callable[..., Any]]] = {
        code: _BASE[code] for code in (getattr(pickle, name)[0] for name in _OPCODES)
    }

    def __init__(self, file: Bounded, budget: Budget) -> None:
        super().__init__(file, encoding="latin1")
        self.budget = budget

    @property
    def read(self) -> Callable[[int], bytes]:
        """The base class' way to each instruction and its argument, counted."""
        return self._counted

    @read.setter
    def read(self, read: Callable[[int], bytes]) -> None:
        def counted(size: int) -> bytes:
            self.budget.instructions -= 1
            if self.budget.instructions < 0:
                raise DataError(f"more than {INSTRUCTIONS:,} instructions: data of that size come as arrays")
            return read(size)

        self._counted = counted

    def load_bytearray8(self) -> None:
        """How protocol 5 writes a writable array; through ``read``, which does not trust the length."""
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def load_build(self) -> None:
        """Gives an array or a dtype its state; nothing else has one."""
        target, state = self.stack[-2], self.stack[-1]
        if not isinstance(target, (Array, Dtype, Constructor)):
            raise DataError(f"the pickle tries to change a {type(target).__name__}")
        self.budget.copy(state)
        del self.stack[-1]
        target.__setstate__(state)

    dispatch[pickle.BUILD[0]] = load_build

    def load_number(self) -> None:
        """Whole numbers written as text, of any length: hexadecimal ones have no limit of Python's own."""
        text = self.readline()[:-1]
        if len(text) > LONGEST_NUMBER // 4:
            raise DataError(f"a number of {len(text)} characters")
        if text in (b"00", b"01"):  # how protocols 0 and 1 write False and True
            self.append(text == b"01")
        else:
            self.append(int(text.removesuffix(b"L"), 0))

    dispatch[pickle.INT[0]] = dispatch[pickle.LONG[0]] = load_number

    def load_reduce(self) -> None:
        """Calls one of our own constructors, and nothing else."""
        if not isinstance(self.stack[-2], Constructor):
            raise DataError(f"the pickle calls a {type(self.stack[-2]).__name__}")
        _BASE[pickle.REDUCE[0]](self)

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_setitem(self) -> None:
        plain_key(self.stack[-2])
        _BASE[pickle.SETITEM[0]](self)

    dispatch[pickle.SETITEM[0]] = load_setitem

    for _code, _step in ((pickle.SETITEMS, 2), (pickle.DICT, 2), (pickle.ADDITEMS, 1), (pickle.FROZENSET, 1)):
        dispatch[_code[0]] = _with_keys(_code, _step)

    def find_class(self, module: str, name: str) -> Constructor:
        if (module, name) not in ALLOWED:
            raise DataError(
                f"refused: it refers to {module[:80]}.{name[:80]}, and a data pickle may hold numpy arrays and plain "
                "containers only; nothing of it was executed"
            )
        return Constructor(f"{module}.{name}", ALLOWED[module, name], self.budget)


def load_pickle(path: Path) -> Any:
    """What a data pickle holds: numpy arrays and scalars, plain containers, strings and numbers.

    Arrays are read-only views of the file's bytes: no second copy of the data is made.

    Args:
        path: the pickle, any protocol, written by Python 2 or 3 and numpy 1 or 2.

    Raises:
        DataError: no such file; damaged or no pickle; it refers to anything that is not data, in which case the
            message names it and nothing of it was executed; or it would take far more time or memory than its size.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            budget = Budget(os.fstat(file.fileno()).st_size)
            tree = _DataUnpickler(Bounded(file), budget).load()
        return Resolver(budget).resolve(tree)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # a hostile or damaged file can fail in any way: one error type for all of them
        reason = _REASONS.get(type(error)) or f"{type(error).__name__}: {str(error)[:200]}"
        raise DataError(f"{path}: no pickle, or a damaged one ({reason})") from None
