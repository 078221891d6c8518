"""One process at a time writes a place: a lock that the system frees when its process ends."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deepmlf_llm.errors import FileError
from deepmlf_llm.files import LONGEST_NAME, forget, writing
from deepmlf_llm.paths import shown


@contextmanager
def held(path: Path, work: str) -> Iterator[None]:
    """Holds ``path`` for this process: a second one that asks is refused. The system frees it when the process ends,
    however it ends, so a lock is never left over.

    Args:
        path: the file or directory that is about to be written; need not exist.
        work: what the other process does there, for the message: ``"writes it"``.

    Raises:
        FileError: another process holds it, or nothing can be written there.
    """
    from filelock import FileLock, Timeout

    name = path / ".lock" if path.is_dir() else path.with_name(f".{path.name[:LONGEST_NAME]}.lock")
    lock = FileLock(str(name), timeout=0)
    with writing(path):
        try:
            lock.acquire()
        except Timeout:
            raise FileError(f"{shown(path)}: another process {work}; wait for it, or name another place") from None
        except NotImplementedError:
            warnings.warn(f"{shown(path)}: this file system has no locks; start no second process there", stacklevel=3)
    try:
        yield
    finally:
        if lock.is_locked:
            forget(Path(lock.lock_file))  # while it is held: who opens it afterwards makes a new one
            lock.release()
