"""What reading a data pickle may cost: a small file must not take minutes or gigabytes.

A pickle can copy what it holds over and over, refer to one object a million times, nest without end, or hold keys that
are all alike to a dictionary. Each is counted or refused here; a file that is what it seems stays far below the limits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deepmlf_llm.errors import DataError

INSTRUCTIONS = 50_000_000  # reads of the interpreter, under a minute of them; arrays and long texts take a few each
SPARE_BYTES, SPARE_VALUES = 256 << 20, 1 << 20  # what the smallest file may take
DEPTH = 64
DIMENSIONS, LARGEST_SIZE = 32, 1 << 48  # of an array
LONGEST_NUMBER = 2048  # bits
KEY_KINDS = "biufSU"  # of numpy scalars
LARGEST_KEY = (1 << 61) - 2  # such whole numbers are their own hash: a file cannot make many of them collide


class Budget:
    """What reading a file may take, known from its size: instructions, bytes copied, values unfolded."""

    def __init__(self, size: int) -> None:
        self.instructions = INSTRUCTIONS
        self.bytes = 8 * size + SPARE_BYTES
        self.values = 4 * size + SPARE_VALUES
        self.unfolded = 64 * size + SPARE_BYTES

    def copy(self, *values: Any) -> None:
        """Notes that these are copied, or read through, once more."""
        for value in values:
            self.bytes -= _weight(value)
            if isinstance(value, tuple):  # the state of an array
                self.bytes -= sum(map(_weight, value))
        if self.bytes < 0:
            raise DataError("it copies the same data over and over: far more memory than the file is long")

    def unfold(self, values: int, size: int) -> None:
        """Refuses a value that is this large once all that is shared in it is written out."""
        if values > self.values or size > self.unfolded:
            raise DataError(
                f"it refers to the same objects over and over: {values:.2g} values, {size:.2g} bytes, far more than in "
                "the file"
            )


def plain_key(value: Any) -> Any:
    """``value``, if a dictionary or a set of data may hold it as a key.

    Not tuples: hashing one walks through all that it refers to, and its hash can be made to equal another's.
    """
    if isinstance(value, int):
        good = abs(value) <= LARGEST_KEY
    elif isinstance(value, np.generic):
        good = value.dtype.kind in KEY_KINDS
    else:
        good = isinstance(value, (str, bytes, float, type(None)))
    if good:
        return value
    raise DataError(f"a key that is no data: {'a huge number' if isinstance(value, int) else type(value).__name__}")


def _weight(value: Any) -> int:
    """Bytes of one value itself, roughly."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, (dict, set, frozenset)):
        return 100 * len(value)
    return 16 * len(value) if isinstance(value, (list, tuple)) else 0
