"""Single values as files hold them: labels, transcripts and frames, checked row by row, the row named in messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from deepmlf_llm.errors import DataError

SHOWN = 3
"""How many of many rows a message lists."""

_DEEPEST = 64  # lists in lists that numpy reads
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+", re.ASCII)
_KINDS = {"c": "complex numbers", "U": "strings", "S": "strings", "M": "dates", "m": "durations", "V": "records"}


def parse_number(text: str) -> float:
    """A decimal number as files write it; an empty cell is NaN.

    Raises:
        ValueError: anything else; the message says what is wrong with it.
    """
    text = text.strip()
    if not text:
        return float("nan")
    if _NUMBER.fullmatch(text):
        return float(text)
    if text.lower() in ("nan", "na", "n/a", "none", "null"):
        return float("nan")
    raise ValueError("a decimal comma: write a point" if _DECIMAL_COMMA.fullmatch(text) else "no number")


def is_column(values: Any) -> bool:
    """Whether ``values`` holds rows: a list, a tuple, or an array of any dimension but none."""
    return isinstance(values, (list, tuple)) or (isinstance(values, np.ndarray) and values.ndim > 0)


def row_name(row: int, ids: Sequence[str] | None = None) -> str:
    """How messages call a row."""
    return f"row {row} ({ids[row]!r})" if ids is not None and row < len(ids) else f"row {row}"


def listed(rows: Sequence[str]) -> str:
    """The first few of many, and how many more there are."""
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return ", ".join(rows[:SHOWN]) + more


def read_numbers(values: Any, where: str, ids: Sequence[str] | None = None) -> np.ndarray:
    """One number a row, float64 [N]; None is NaN.

    Args:
        values: a list, or an array (N,) or (N, 1, ...), of numbers or of strings that are numbers.
        where: for messages.
        ids: names of the rows, for messages.

    Raises:
        DataError: it is anything else; the rows are named.
    """
    if not is_column(values):
        raise DataError(f"{where}: expected one number a row, found one {type(values).__name__}")
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):
        array = _as_objects(values)
    if array.ndim > 1 and array.size == len(array):
        array = array.reshape(-1)
    if array.ndim != 1:
        raise DataError(f"{where}: expected one number a row, found shape {array.shape}")
    # numpy makes a number of a truth value that stands among numbers.
    mixed = isinstance(values, (list, tuple)) and any(isinstance(value, (bool, np.bool_)) for value in values)
    if array.dtype.kind in "fiu" and not mixed:
        return array.astype(np.float64)
    numbers, wrong = np.full(len(array), np.nan), []
    for row, value in enumerate(values if mixed or array.dtype.kind == "O" else array.tolist()):
        try:
            numbers[row] = _number(value)
        except ValueError as error:
            wrong.append(f"{row_name(row, ids)} is {_short(value)} ({error})")
    if wrong:
        raise DataError(f"{where}: expected one number a row, but {listed(wrong)}")
    return numbers


def _number(value: Any) -> float:
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    if isinstance(value, bytes):
        value = value.decode("latin1")
    if value is None:
        return float("nan")
    if isinstance(value, str):
        return parse_number(value)
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ValueError("too large") from None
    raise ValueError("no number")


def read_texts(values: Any, count: int, where: str, what: str, ids: Sequence[str] | None = None) -> list[str]:
    """One string a row [N].

    Args:
        values: a list or array of strings, bytes in UTF-8, or whole numbers (ids).
        count: N.
        where: for messages.
        what: what each is, for messages: "transcript".
        ids: names of the rows, for messages.

    Raises:
        DataError: another number of rows; rows with None, NaN or no string; each named.
    """
    if not is_column(values):
        raise DataError(f"{where}: expected {count} strings, one for each label, found one {type(values).__name__}")
    if len(values) != count:
        raise DataError(f"{where}: expected {count} strings, one for each label, found {len(values)}")
    texts, missing, wrong = [], [], []
    for row, value in enumerate(values):
        if isinstance(value, np.ndarray) and value.size == 1:
            value = value.reshape(-1)[0]
        if value is None or (isinstance(value, (float, np.floating)) and np.isnan(value)):
            missing.append(f"{row_name(row, ids)} is {value}")
            continue
        try:
            texts.append(read_text(value))
        except ValueError as error:
            wrong.append(f"{row_name(row, ids)} {error}: {_short(value)}")
    if missing:
        todo = "give each row one" if what == "id" else "remove these rows, or give them an empty string"
        raise DataError(f"{where}: no {what} in {len(missing)} of {count} rows: {listed(missing)}; {todo}")
    if wrong:
        raise DataError(f"{where}: expected strings, but {listed(wrong)}")
    return texts


def read_text(value: Any) -> str:
    """One string, from a string, bytes in UTF-8 or a whole number; raises ValueError for anything else."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError("is not valid text in UTF-8") from None
    if isinstance(value, (str, int, np.integer)) and not isinstance(value, bool):
        try:
            text = str(value)
            text.encode("utf-8")  # half a surrogate pair would fail much later, when written
        except (UnicodeError, ValueError):
            raise ValueError("is not valid text") from None
        return text
    raise ValueError(f"is a {type(value).__name__}")


def read_frames(value: Any, where: str) -> np.ndarray:
    """The frames of one utterance [t x d]; [d] is one frame; None or nothing is an absent modality [0 x 0].

    Any real number type in any memory order is read as it is; an object array if it holds real numbers
    and None, which is NaN, only.

    Raises:
        DataError: another shape, or values that are not real numbers.
    """
    if value is None:
        return np.empty((0, 0), dtype=np.float32)
    if isinstance(value, (list, tuple)) and bool in entry_types(value):
        raise DataError(f"{where} holds true or false, expected numbers (frames, dims)")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where} is not an array ({error})") from None
    if not array.size and array.ndim <= 2 and not len(np.atleast_1d(array)):
        return np.empty((0, array.shape[1] if array.ndim == 2 else 0), dtype=np.float32)
    if array.dtype.kind == "O":
        array = _real_objects(array, where)
    if array.dtype.kind not in "fiub":
        kind = _KINDS.get(array.dtype.kind, str(array.dtype))
        raise DataError(f"{where} holds {kind} ({array.dtype}), expected numbers (frames, dims)")
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or not array.shape[1]:
        hint = ": drop the first axis" if array.ndim == 3 and array.shape[0] == 1 else ""
        raise DataError(
            f"{where} is {array.dtype} of shape {array.shape}, expected numbers (frames, dims) or (dims,){hint}"
        )
    return array.astype(np.float32) if array.dtype.kind == "b" else array


def entry_types(values: Any) -> set[type]:
    """Types of what nested lists hold at their ends."""
    found: set[type] = set()
    level = [values]
    for _ in range(_DEEPEST):
        kinds = set(map(type, level))
        found |= kinds - {list, tuple}
        # Each list once: pickles can hold one many times, or in itself.
        lists = {id(part): part for part in level if isinstance(part, (list, tuple))} if kinds - found else {}
        level = list(chain.from_iterable(lists.values()))
        if not level:
            break
    return found


def _real_objects(array: np.ndarray, where: str) -> np.ndarray:
    for value in array.flat:
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float, np.number))):
            raise DataError(f"{where} is an object array that holds a {type(value).__name__}, expected numbers")
    try:
        return array.astype(np.float64)
    except (OverflowError, TypeError):  # TypeError: complex
        raise DataError(f"{where} holds a number that is complex or too large") from None


def _as_objects(values: Sequence[Any]) -> np.ndarray:
    return np.fromiter(values, dtype=object, count=len(values))


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
