"""What a refused write is called: from an error of the system, or of a library in another language, to one sentence."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

from deepmlf_llm.paths import shown

_ROOM = "make room there, or name another place"
_PLACE = "name another place"
_REASONS = {  # error of the system -> what it means, what to do
    errno.ENOSPC: ("the disk is full", _ROOM),
    errno.EDQUOT: ("your quota on this disk is used up", _ROOM),
    errno.EFBIG: ("larger than a file may be here (the file system's limit, or ulimit -f)", _PLACE),
    errno.EROFS: ("the file system is read-only", _PLACE),
    errno.EACCES: ("no permission", "change the permissions, or name another place"),
    errno.EPERM: ("not permitted", "change the permissions, or name another place"),
    errno.EISDIR: ("a directory stands in its place", _PLACE),
    errno.ENOTDIR: ("a file stands where a directory is needed", _PLACE),
    errno.EEXIST: ("something else stands in its place", _PLACE),
    errno.ENOTEMPTY: ("a directory that is not empty stands in its place", _PLACE),
    errno.ENOENT: ("its directory is not there", "make it, or name another place"),
    errno.ENAMETOOLONG: ("its name is too long", "choose a shorter one"),
    errno.ELOOP: ("its symbolic links lead in a circle", _PLACE),
    errno.EIO: ("the disk reports an error", "see the system's log, or name another place"),
    errno.ESTALE: ("the network file system has lost it", "mount it again, or name another place"),
    errno.EMFILE: ("too many files are open", "raise ulimit -n"),
    errno.EBUSY: ("it is in use", _PLACE),
    errno.EXDEV: ("it lies on another file system than the place it was written at", _PLACE),
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Of the machine or of what the user named, wherever they come from; the rest may be a mistake of ours as well.
NEVER_OURS = _REASONS.keys() - {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EXDEV, errno.EBUSY}
# safetensors (Rust), Arrow and torch (C++) give the number or the text only. torch: a zip that could not be written on.
_NUMBER = re.compile(r"(?:os error |\[Errno |errno: ?)(\d+)")
_SHORT = re.compile(r"requested and \d+ written|PytorchStreamWriter failed|unexpected pos \d+ vs|file write failed")


def explain(error: BaseException, path: Path, needed: int | None = None, done: str = "written") -> str | None:
    """One sentence on a write to ``path`` that failed, None where the error says nothing of files.

    Args:
        error: as raised, by Python or by a library.
        path: what was to be written.
        needed: bytes, where they are known.
        done: what cannot be done to it.
    """
    number = error_number(error)
    if number not in _REASONS or (number not in _FULL and _is_elsewhere(error, path)):
        return None
    reason, advice = _REASONS[number]
    if number == errno.ENOTDIR and (blocking := _file_among_parents(path)):
        reason = f"{shown(blocking)} is a file, and a directory is needed there"
    if _SHORT.search(str(error)):  # numpy and torch do not ask why
        reason = "the disk took only a part of it"
    if number in _FULL:
        free = free_bytes(path)
        room = [] if needed is None else [f"{megabytes(needed)} needed"]
        room += [] if free is None else [f"{megabytes(free)} free"]
        reason += f" ({', '.join(room)})" if room else ""
    return f"{shown(path)}: cannot be {done}: {reason}; {advice}"


def error_number(error: BaseException) -> int | None:
    """The system's number of an error, wherever it stands; of a write that was cut short, that of a full disk."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if not isinstance(error, (OSError, RuntimeError)) and type(error).__name__ != "SafetensorError":
        return None
    text = str(error)
    if match := _NUMBER.search(text):
        return int(match[1])
    for number in _FULL:
        if os.strerror(number).lower() in text.lower():
            return number
    return errno.ENOSPC if _SHORT.search(text) else None


def free_bytes(path: Path) -> int | None:
    """Room on the file system of ``path``, which need not exist; None where it is unknown."""
    for place in (path, *path.absolute().parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return None


def megabytes(size: int) -> str:
    """``12 kB``, ``3.4 MB``, ``560 MB``, ``1.2 GB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            value = size / scale
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{-(-size // 1000)} kB"


def _is_elsewhere(error: BaseException, path: Path) -> bool:
    """Whether the error names a file that has nothing to do with ``path``: one that was read, say."""
    name = getattr(error, "filename", None)
    if not isinstance(name, (str, os.PathLike)):
        return False
    place, named = path.absolute(), Path(name).absolute()
    return not (named.is_relative_to(place.parent) or place.is_relative_to(named))


def _file_among_parents(path: Path) -> Path | None:
    return next((parent for parent in path.absolute().parents if parent.is_file()), None)
