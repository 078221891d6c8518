"""HDF5 files, read so that a file cannot reach out of itself: no external links, storage or virtual data sets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from deepmlf_llm.data.file_kind import HDF5, file_kind
from deepmlf_llm.errors import DataError
from deepmlf_llm.extras import require

_MOST_EXPANDED = 2000
"""Bytes that one stored byte may become; a file beyond that declares what is not in it."""
_FREE = 1 << 20  # small arrays may be empty space altogether


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """The open file.

    Raises:
        MissingPackageError: ``h5py`` is not installed.
        DataError: the file is damaged, cut off or another kind of file.
    """
    h5py = require("h5py", f"{path}: reading HDF5")
    kind = file_kind(path)
    if kind.name != HDF5:
        raise kind.refuse(path)
    try:
        file = h5py.File(path, "r")
    except Exception as error:  # a damaged file can fail in any way
        raise DataError(f"{path}: is HDF5 that is damaged or cut off ({error}); download or copy it again") from None
    with file:
        yield file


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """Turns whatever HDF5 says of damaged bytes into one error."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # a damaged tree, heap or chunk, or a filter that is not there
        raise DataError(f"{what} cannot be read, or is damaged ({error}); download or copy the file again") from None


def child(parent: Any, name: str, where: str) -> Any:
    """A member of a group.

    Raises:
        DataError: it is not there, cannot be read, or is a link into another file.
    """
    h5py = require("h5py", "reading HDF5")
    with _readable(f"{where}: {name}"):
        if name not in parent:
            raise DataError(f"{where}: has no {name}")
        link = parent.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise DataError(f"{where}: {name} is a link into another file ({link.filename}), which is not followed")
        return parent[name]


def groups(parent: Any, where: str) -> dict[str, Any]:
    """The members that are groups, by name."""
    with _readable(where):
        names = list(parent)
    found = {name: child(parent, name, where) for name in names}
    return {name: member for name, member in found.items() if hasattr(member, "keys")}


def read_array(parent: Any, name: str, where: str) -> np.ndarray:
    """A data set of a group as an array.

    Raises:
        DataError: it is not a data set, lies in other files, says that it is far larger than its file, or is damaged.
    """
    member = child(parent, name, where)
    with _readable(f"{where}: {name}"):
        if not hasattr(member, "shape") or member.shape is None:
            raise DataError(f"{where}: {name} is not an array")
        if member.external or member.is_virtual:
            raise DataError(f"{where}: {name} lies in other files, which are not read")
        stored, size = member.id.get_storage_size(), int(np.prod(member.shape, dtype=object)) * member.dtype.itemsize
        if size > _FREE + _MOST_EXPANDED * stored:
            raise DataError(f"{where}: {name} says it has {size} bytes, and the file holds {stored}")
        return np.asarray(member[()])
