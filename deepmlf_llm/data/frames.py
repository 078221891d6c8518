"""Feature frames from whatever a user hands over: lists out of JSON, arrays, tensors."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np

from deepmlf_llm.errors import DataError

_NUMBERS = (int, float, Decimal, np.integer, np.floating, type(None))


def frames_of_width(name: str, value: Any, dim: int, made: str = "") -> np.ndarray:
    """Frames of one modality of one utterance, as float32.

    Args:
        name: of the modality, for messages.
        value: frames [t x d] as nested lists, array or tensor; one frame [d]; None or empty where it is absent. A
            ``None`` among the numbers is a NaN, as tables write it.
        dim: d, the width that is expected.
        made: how features of that width were made, for the message.

    Returns:
        [t x d] float32; what float32 cannot hold is infinite, as it is when training data are read. t = 0: absent.

    Raises:
        DataError: anything else, such as text where numbers are meant, rows of different length, another width.
    """
    array = _array(name, value)
    if array.ndim and len(array) == 0:
        return np.empty((0, dim), dtype=np.float32)
    if array.ndim == 1 and array.shape[0] == dim:
        array = array[None]
    if array.ndim != 2 or array.shape[1] != dim:
        raise DataError(
            f"{name}: features of shape {list(array.shape)}, but this model was trained on [frames, {dim}]{made}"
        )
    return array


def _array(name: str, value: Any) -> np.ndarray:
    """Of any shape, float32."""
    if value is None:
        return np.empty(0, dtype=np.float32)
    if isinstance(value, (list, tuple)):
        value = [_of_tensor(row) if hasattr(row, "__array__") else row for row in value]
    elif not hasattr(value, "__array__"):
        raise DataError(f"{name} is not a table of numbers but {_kind(value)}: expected frames, a list of lists")
    try:
        # As objects first: with text among the numbers, numpy would make text of them all.
        array = _of_tensor(value) if hasattr(value, "__array__") else np.asarray(value, dtype=object)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} is not a table of numbers: {_shorten(error)}") from error
    if array.ndim > 32:  # numpy counts to 64, but walks through 32
        raise DataError(f"{name} is not a table of numbers: lists in lists, {array.ndim} deep")
    if array.dtype.kind == "O":
        _check_entries(name, array)
    elif array.dtype.kind not in "fiu":
        raise DataError(f"{name} is not a table of numbers: it holds {array.dtype}")
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            return array.astype(np.float32)
    except (OverflowError, TypeError, ValueError) as error:
        raise DataError(f"{name} is not a table of numbers that a float can hold: {_shorten(error)}") from error


def _of_tensor(value: Any) -> np.ndarray:
    """An array, or a tensor, which numpy takes neither from a GPU nor from a graph, nor in bf16."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    return np.asarray(value)


def _check_entries(name: str, array: np.ndarray) -> None:
    """Every entry of an array of objects is a number.

    Raises:
        DataError: one is not; the message gives the first.
    """
    kinds = set(map(type, array.flat))
    wrong = {kind for kind in kinds if not issubclass(kind, _NUMBERS) or kind is bool}
    if not wrong:
        return
    if wrong <= {list, tuple}:
        lengths = sorted({len(row) for row in array.flat if isinstance(row, (list, tuple))})
        raise DataError(
            f"{name} is not a table of numbers: its rows differ in length (such as {', '.join(map(str, lengths[:3]))})"
        )
    entry = next(entry for entry in array.flat if type(entry) in wrong)
    raise DataError(f"{name} is not a table of numbers: it holds {_kind(entry)}")


def _kind(value: Any) -> str:
    words = {str: "text", bool: "true or false", dict: "an object", list: "a list", bytes: "bytes"}
    kind = words.get(type(value), type(value).__name__)
    return f"{kind} ({value[:40]!r})" if isinstance(value, (str, bytes)) else kind


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
