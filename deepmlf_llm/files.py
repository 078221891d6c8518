"""Writing files, in one place: aside, synced, renamed; hashed; and what to say if it fails.

What is written here is either as before or complete, whatever happens in between. A write that the system refuses (no
room, no permission, something else in its place) is a :class:`~deepmlf_llm.errors.FileError` of one sentence.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from deepmlf_llm.errors import FileError
from deepmlf_llm.paths import shown
from deepmlf_llm.write_errors import explain, free_bytes, megabytes

LONGEST_NAME = 200  # characters of a name that ".NAME.partial" may still be made of


def write_aside(path: Path, content: str | bytes, shared: bool = False) -> None:
    """Writes a file that is either the old one or the new one, whatever happens in between.

    Args:
        path: where; a file there is replaced.
        content: of it.
        shared: see :func:`file_aside`.

    Raises:
        FileError: it cannot be written; what was there is left.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    with file_aside(path, len(data), shared) as aside:
        aside.write_bytes(data)


@contextmanager
def file_aside(path: Path, needed: int | None = None, shared: bool = False) -> Iterator[Path]:
    """A name to write a file under; it gets its own name, synced, only if all went well.

    Args:
        path: where the file shall be; a file there is replaced.
        needed: bytes, where they are known: for the message.
        shared: several processes may write it at once, and the last one stays; what a kill leaves is not written over.

    Raises:
        FileError: it cannot be written; what was there is left.
    """
    path = _target(path)
    check_place(path)
    own = f".{secrets.token_hex(4)}" if shared else ""
    aside = path.with_name(f".{path.name[:LONGEST_NAME]}{own}.partial")
    with writing(path, needed):
        try:
            yield aside
            sync(aside)
            os.replace(aside, path)
            sync(path.parent)
        except BaseException:
            forget(aside)
            raise


@contextmanager
def directory_aside(directory: Path, replace: bool = False, needed: int | None = None) -> Iterator[Path]:
    """A directory to write into; it gets its name, every file synced, only if all went well.

    Args:
        directory: where it shall be; missing parents are made.
        replace: take the place of a directory that is there, which goes only after the new one is whole; without it, it
            must be missing or empty.
        needed: bytes, where they are known: for the message.

    Raises:
        FileError: it cannot be written, or the place was taken meanwhile; what was there is left.
    """
    directory = _target(directory)
    with aside_of(directory, needed) as aside:
        yield aside
        settle(aside)
        if replace:
            replace_directory(aside, directory)
        else:
            os.rename(aside, directory)  # replaces an empty directory, refuses any other
            sync(directory.parent)


def replace_directory(new: Path, place: Path) -> None:
    """Gives a directory written aside its place; what was there goes only after that.

    Raises:
        FileError: it cannot be renamed; what was there is left.
    """
    with writing(place):
        old = place.with_name(f".{place.name[:LONGEST_NAME]}.old")
        if old.is_dir() and not place.exists():  # a kill between the two renames
            os.rename(old, place)
        forget(old)
        if place.is_dir():
            os.rename(place, old)
        try:
            os.rename(new, place)
        except BaseException:
            if old.exists():
                os.rename(old, place)
            raise
        sync(place.parent)
        forget(old)


@contextmanager
def files_aside(directory: Path, last: str, needed: int | None = None) -> Iterator[Path]:
    """A directory to write into; its files go to ``directory``, each in one rename, only if all went well.

    Args:
        directory: made if it is missing; other files in it stay.
        last: name of the files that go last: those that say what the others are.
        needed: bytes, where they are known: for the message.

    Raises:
        FileError: they cannot be written.
    """
    directory = _target(directory)
    with aside_of(directory, needed) as aside:
        yield aside
        settle(aside)
        directory.mkdir(exist_ok=True)
        for path in sorted(aside.rglob("*"), key=lambda p: (p.name == last, -len(p.parts))):
            if path.is_file():
                target = directory / path.relative_to(aside)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
        sync(directory)


@contextmanager
def aside_of(directory: Path, needed: int | None = None) -> Iterator[Path]:
    """An empty directory beside ``directory``, gone afterwards if it was not renamed.

    Raises:
        FileError: it cannot be made or written to.
    """
    aside = None
    with writing(directory, needed):
        try:
            make_directory(directory.parent)
            if directory.exists() and not directory.is_dir():
                raise FileError(f"{shown(directory)}: cannot be made: a file stands in its place; name another place")
            aside = Path(tempfile.mkdtemp(prefix=f".{directory.name[:LONGEST_NAME]}-", dir=directory.parent))
            yield aside
        finally:
            if aside is not None:
                shutil.rmtree(aside, ignore_errors=True)


def _target(path: Path) -> Path:
    """Where ``path`` leads: what a symbolic link points to is written, the link stays."""
    with writing(path):
        if not path.is_symlink():
            return path
        with suppress(FileNotFoundError):  # what it points to will be made; a circle is refused
            path.stat()
    return Path(os.path.realpath(path))


def temporary_directory(reason: str) -> Path:
    """A directory that goes when this process ends, where a cache cannot be written; says so as a warning.

    Args:
        reason: why it is needed.

    Returns:
        The same one, however often this process asks: what was put there is found again.
    """
    warnings.warn(f"{reason}; going on without the cache, in a directory that goes at the end", stacklevel=3)
    return _scratch()


@cache
def _scratch() -> Path:
    directory = tempfile.mkdtemp(prefix="deepmlf-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return Path(directory)


def settle(directory: Path) -> None:
    """Syncs all that is in a directory, and gives it the permissions that the user's umask leaves."""
    mask = umask()
    for path in [*directory.rglob("*"), directory]:
        if path.is_symlink():
            continue
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
        sync(path)


@contextmanager
def writing(path: Path, needed: int | None = None) -> Iterator[None]:
    """Whatever is written in here belongs to ``path``: what the system refuses is said in one sentence.

    Raises:
        FileError: in the place of the error of the system, or of the library that wrote.
    """
    try:
        yield
    except Exception as error:
        sentence = explain(error, path, needed)
        if sentence is None:
            raise
        raise FileError(sentence) from error


def check_place(path: Path) -> None:
    """Refuses a place where no file can be renamed to.

    Raises:
        FileError: a directory, a device or a pipe stands there.
    """
    with writing(path):
        if path.exists() and not path.is_file():
            kind = "a directory" if path.is_dir() else "a device or a pipe"
            raise FileError(f"{shown(path)}: cannot be written: {kind} stands in its place; name another file")


def make_directory(path: Path) -> None:
    """Makes a directory and its parents, where they are missing.

    Raises:
        FileError: it cannot be made.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def check_room(path: Path, needed: int, what: str) -> None:
    """Refuses to begin what cannot be finished for lack of room.

    Args:
        path: where it shall be; need not exist.
        needed: bytes.
        what: is to be written there, for the message.

    Raises:
        FileError: the file system has less room than that.
    """
    free = free_bytes(path)
    if free is not None and free < needed:
        raise FileError(
            f"{shown(path)}: no room for {what}: {megabytes(needed)} needed, {megabytes(free)} free there; make room, "
            "or name another place"
        )


def sync(path: Path) -> None:
    """Waits until a file or directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def forget(path: Path) -> None:
    """Removes a file or a directory of ours, where it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def umask() -> int:
    """The permissions that this user's new files do not get."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.partition("\nUmask:")[2].split()[0], 8)
    except (OSError, IndexError, ValueError):  # no Linux: asking means setting, for an instant, in all threads
        mask = os.umask(0)
        os.umask(mask)
        return mask
