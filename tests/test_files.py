"""Files are as before or complete; what the system refuses is one sentence; nothing of ours is left over."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import textwrap
from contextlib import nullcontext
from pathlib import Path

import pytest

from deepmlf_llm import files
from deepmlf_llm.errors import FileError

WRITERS = {
    "file": lambda place: files.write_aside(place, "new"),
    "directory": lambda place: write_directory(place),
    "replaced directory": lambda place: write_directory(place, replace=True),
    "files of a directory": lambda place: write_files(place),
}


USES = {
    "file": {"fsync", "replace"},
    "directory": {"fsync", "rename"},
    "replaced directory": {"fsync", "rename"},
    "files of a directory": {"fsync", "replace"},
}


def write_directory(place: Path, replace: bool = False) -> None:
    with files.directory_aside(place, replace) as aside:
        (aside / "inner").mkdir()
        (aside / "inner" / "a").write_text("new")


def write_files(place: Path) -> None:
    with files.files_aside(place, last="config") as aside:
        (aside / "config").write_text("new")
        (aside / "inner").mkdir()
        (aside / "inner" / "a").write_text("new")


def everything(place: Path) -> dict[str, str | None]:
    return {str(p.relative_to(place)): p.read_text() if p.is_file() else None for p in sorted(place.rglob("*"))}


def test_a_file_is_written_whole_and_alone(tmp_path):
    files.write_aside(tmp_path / "x.json", "one")
    files.write_aside(tmp_path / "x.json", b"two")
    assert everything(tmp_path) == {"x.json": "two"}


def test_processes_may_write_the_same_file_at_once(tmp_path):
    place = tmp_path / "key.json"
    with files.file_aside(place, shared=True) as one, files.file_aside(place, shared=True) as other:
        one.write_text("one")
        other.write_text("other")
    assert place.read_text() == "one"  # the last that got its name
    assert list(tmp_path.iterdir()) == [place]


def test_a_kill_between_two_renames_loses_nothing(tmp_path, monkeypatch):
    place, new = tmp_path / "adapter", tmp_path / "new"
    for directory, content in ((tmp_path / ".adapter.old", "before"), (new, "new")):
        directory.mkdir()
        (directory / "weights").write_text(content)

    def refuse(source, target):
        if source == new:
            raise PermissionError(13, "Permission denied")
        rename(source, target)

    rename = os.rename
    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", refuse)
        with pytest.raises(FileError):
            files.replace_directory(new, place)
    assert (place / "weights").read_text() == "before"
    files.replace_directory(new, place)
    assert (place / "weights").read_text() == "new"
    assert list(tmp_path.iterdir()) == [place]


def test_a_directory_appears_whole_and_its_parents_are_made(tmp_path):
    write_directory(tmp_path / "a" / "b")
    assert everything(tmp_path) == {"a": None, "a/b": None, "a/b/inner": None, "a/b/inner/a": "new"}


def test_a_directory_takes_the_place_of_another_only_if_asked(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "old").write_text("old")
    with pytest.raises(FileError, match="a directory that is not empty stands in its place"):
        write_directory(tmp_path / "x")
    assert everything(tmp_path) == {"x": None, "x/old": "old"}
    write_directory(tmp_path / "x", replace=True)
    assert everything(tmp_path) == {"x": None, "x/inner": None, "x/inner/a": "new"}


def test_files_go_one_by_one_the_named_one_last(tmp_path, monkeypatch):
    order = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(Path(b).name), replace(a, b)))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "kept").write_text("old")
    write_files(tmp_path / "x")
    assert order == ["a", "config"]
    assert everything(tmp_path / "x") == {"config": "new", "inner": None, "inner/a": "new", "kept": "old"}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_the_umask(tmp_path, writer, mask):
    before = os.umask(mask)
    try:
        assert files.umask() == mask
        WRITERS[writer](tmp_path / "x")
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~mask


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("call", ["fsync", "replace", "rename"])
def test_what_the_system_refuses_leaves_what_was_there(tmp_path, monkeypatch, writer, number, call):
    place = tmp_path / "x"
    if writer == "file":
        place.write_text("old")
    elif writer != "directory":
        place.mkdir()
        (place / "old").write_text("old")
    before = everything(tmp_path)
    real = getattr(os, call)
    calls = []

    def refused(*args):
        calls.append(args)
        if len(calls) == 1:
            raise OSError(number, os.strerror(number))
        return real(*args)

    monkeypatch.setattr(os, call, refused)
    with pytest.raises(FileError, match="x: cannot be written: ") if USES[writer] >= {call} else nullcontext():
        WRITERS[writer](place)
    if calls:
        after = {name: text for name, text in everything(tmp_path).items() if text is not None}
        assert after == {name: text for name, text in before.items() if text is not None}


@pytest.mark.parametrize("writer", WRITERS)
def test_an_error_of_the_caller_passes_and_leaves_nothing(tmp_path, writer, monkeypatch):
    monkeypatch.setattr(Path, "write_text", lambda *a, **k: 1 / 0)
    monkeypatch.setattr(Path, "write_bytes", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        WRITERS[writer](tmp_path / "x")
    assert everything(tmp_path) == {}


def test_what_was_read_elsewhere_is_not_called_unwritable(tmp_path):
    with pytest.raises(FileNotFoundError):
        with files.directory_aside(tmp_path / "x" / "y"):
            Path("/nowhere/at/all").read_text()


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.mkdir() or (p / "file").write_text("old"), "stands in its place"),
        (lambda p: p.write_text("old"), "stands in its place"),
        (lambda p: os.mkfifo(p), "stands in its place"),
        (lambda p: p.symlink_to(p), "circle"),
    ],
)
def test_something_else_in_its_place(tmp_path, writer, make, message):
    place = tmp_path / "x"
    make(place)
    takes_files = writer == "file" and place.is_file()
    takes_directories = writer in ("replaced directory", "files of a directory") and place.is_dir()
    if takes_files or takes_directories:
        pytest.skip("that is what it replaces")
    with pytest.raises(FileError, match=message):
        WRITERS[writer](place)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_where_a_directory_is_needed_and_a_long_name(tmp_path, writer):
    (tmp_path / "x").write_text("old")
    with pytest.raises(FileError, match=r"x is a file, and a directory is needed there|a file stands"):
        WRITERS[writer](tmp_path / "x" / "y" / "z")
    with pytest.raises(FileError, match="its name is too long; choose a shorter one"):
        WRITERS[writer](tmp_path / ("n" * 300))
    WRITERS[writer](tmp_path / ("n" * 250))  # as long as a name may be
    assert (tmp_path / "x").read_text() == "old"


@pytest.mark.parametrize("writer", WRITERS)
def test_what_a_link_points_to_is_written_and_the_link_stays(tmp_path, writer):
    (tmp_path / "far").mkdir()
    (tmp_path / "x").symlink_to(tmp_path / "far" / "y")
    for _ in range(1 if writer == "directory" else 2):  # what it points to is not there, then is
        WRITERS[writer](tmp_path / "x")
    assert (tmp_path / "x").is_symlink()
    assert [path.name for path in tmp_path.iterdir() if path.name != "x"] == ["far"]
    assert [path.name for path in (tmp_path / "far").iterdir()] == ["y"]


def test_a_device_is_never_replaced(tmp_path):
    with pytest.raises(FileError, match="a device or a pipe stands in its place"):
        files.write_aside(Path("/dev/null"), "new")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_file_beyond_the_limit_is_refused_by_the_system(tmp_path):
    """A real refusal, by the kernel: the limit of this process stands for a full disk."""
    script = """
        import resource, sys; from pathlib import Path; from deepmlf_llm import files
        from deepmlf_llm.errors import FileError
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            files.write_aside(Path(sys.argv[1]), "x" * 5000)
        except FileError as error:
            print(error)
    """
    (tmp_path / "x").write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), tmp_path / "x"], capture_output=True, text=True, check=True
    )
    assert "larger than a file may be here" in done.stdout
    assert "5 kB needed" in done.stdout
    assert everything(tmp_path) == {"x": "old"}


def test_room_is_looked_for_before_the_work(tmp_path):
    files.check_room(tmp_path / "not" / "there", 1000, "a cache")
    with pytest.raises(FileError, match=r"no room for a cache: 1000000000 GB needed, .* free there"):
        files.check_room(tmp_path / "x", 10**18, "a cache")


def test_a_hash_is_that_of_the_content(tmp_path):
    (tmp_path / "x").write_bytes(b"")
    assert files.sha256(tmp_path / "x").startswith("e3b0c44298fc1c14")
