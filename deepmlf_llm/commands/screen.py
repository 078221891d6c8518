"""What a command shows: our own lines and every error. What other libraries say goes to a log, or with ``--verbose`` to
the screen.

A line belongs to the code that wrote it. While a command runs, Python's ``sys.stdout`` and ``sys.stderr`` are replaced,
and each write is traced to its nearest caller that does more than render (the standard library, rich and tqdm render):
our package's lines reach the screen, another library's go to the log. Tracebacks and log records of level ERROR reach
the screen whoever wrote them. File descriptors are left alone, so launchers, child processes and crashes of native code
show what they always did.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any

from deepmlf_llm.paths import cache_dir, shown

LOG_FILE = "libraries.log"
VERBOSE = "--verbose"
VERBOSE_HELP = "show what other libraries say as well; otherwise it goes to a log file"
LARGEST_LOG = 2**20  # bytes; a larger one starts again
_KEPT_LINES = 2000
_SHOWN_LINES = 20
_OURS = frozenset({__name__.partition(".")[0], "__main__", "benchmarks", "recipes", "scripts", "tests"})
_RENDERERS = frozenset({*sys.stdlib_module_names, "", "rich", "tqdm"})
_format_warning = warnings.formatwarning


class Log:
    """What other libraries said: kept in memory, and written line by line to a file as soon as one can be opened.

    Lines of several processes may go to one file: each is appended whole, with its rank in front.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self.rank = os.environ.get("RANK", "0")
        self._file: int | None = None
        self._refused = False
        self._begun = threading.local()  # the line that a thread has begun

    def add(self, text: str) -> None:
        """Text as a stream gets it: a line may come in pieces, and a progress bar draws over what it drew."""
        *whole, begun = (getattr(self._begun, "text", "") + text).split("\n")
        self._begun.text = begun.rpartition("\r")[2]
        for line in whole:
            if line := line.rstrip("\r").rpartition("\r")[2].rstrip():
                self._add_line(f"[{self.rank}] {line}\n")

    def _add_line(self, line: str) -> None:
        self.lines.append(line)
        if self._file is None and not self._refused:
            self._open(self.path, [line])
        elif self._file is not None:
            self._write(self._file, line)

    def move(self, path: Path) -> None:
        """Goes on in ``path``, which gets all that was said so far."""
        if self._file is not None:
            os.close(self._file)
        self._file, self.path = None, path
        if self.lines:
            self._open(path, list(self.lines))
        else:
            self._refused = False

    def _open(self, path: Path, lines: list[str]) -> None:
        """A log that cannot be written is no reason to fail: the lines stay in memory then."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file() and path.stat().st_size > LARGEST_LOG:
                path.unlink(missing_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError:
            self._refused = True
            return
        began = time.strftime("%Y-%m-%d %H:%M:%S")
        self._write(self._file, f"== {began} rank {self.rank}: {Path(sys.argv[0]).name}\n" + "".join(lines))

    @staticmethod
    def _write(file: int, text: str) -> None:
        with suppress(OSError):  # a full disk: the lines are in memory, and our own writes will say so
            os.write(file, text.encode("utf-8", "replace"))

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def tell(self, stream: IO[str]) -> None:
        """After a crash: where the other libraries' lines are, or the last of them where there is no file."""
        if not self.lines:
            return
        if self._file is not None:
            print(f"what other libraries said before: {shown(self.path)}", file=stream)
        else:
            stream.writelines(list(self.lines)[-_SHOWN_LINES:])


class _Stream:
    """Stands for ``sys.stdout`` or ``sys.stderr``. Once its command is over it is whatever that name means then: a
    library's handler may have kept it."""

    def __init__(self, name: str, log: Log) -> None:
        self._name, self._log = name, log
        self._screen: IO[str] | None = getattr(sys, name)

    def _target(self) -> IO[str]:
        current: Any = self._screen or getattr(sys, self._name)
        return getattr(sys, f"__{self._name}__") if current is self else current

    def write(self, text: str) -> int:
        if self._screen is None or is_ours(sys._getframe(1)):
            return self._target().write(text)
        self._log.add(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            if self._screen is None or is_ours(sys._getframe(1)):
                self._target().write(line)
            else:
                self._log.add(line)

    def flush(self) -> None:
        self._target().flush()

    def end(self) -> None:
        """From now on this is only another name of the stream."""
        self._screen = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target(), name)


def is_ours(frame: FrameType | None) -> bool:
    """Whether a write from ``frame`` belongs on the screen: the nearest caller that does not only render decides."""
    draws_bar = False
    while frame is not None:
        module = frame.f_globals.get("__name__") or ""
        if module == "traceback":
            return True
        if module == "logging" and frame.f_code.co_name == "callHandlers":
            record = frame.f_locals.get("record")
            if record is not None and record.levelno >= logging.ERROR:
                return True
        root = module.partition(".")[0]
        if root not in _RENDERERS:
            return root in _OURS or _folder_of(frame) in _OURS
        draws_bar |= root == "tqdm"
        frame = frame.f_back
    return not draws_bar  # tqdm's own thread draws anybody's bars again; ours are drawn at their next step


def _folder_of(frame: FrameType) -> str:
    """Name of the folder that a module without a package lies in: our benchmarks import one another like that."""
    return "" if frame.f_globals.get("__package__") else Path(frame.f_globals.get("__file__") or "").parent.name


def _format(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning of ours is one plain line; another library's says where it comes from."""
    if is_ours(sys._getframe(1)):
        return f"warning: {' '.join(str(message).split())}\n"
    return _format_warning(message, category, filename, lineno, line)


_current: Log | None = None


@contextmanager
def quiet_screen(name: str, verbose: bool = False) -> Iterator[None]:
    """Keeps other libraries' lines off the screen. To be entered before they are imported, in every process.

    Args:
        name: of the command; the log is ``logs/NAME.log`` of the user's cache until :func:`log_beside` names another.
        verbose: change nothing.
    """
    global _current
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if verbose or _current is not None:
        yield
        return
    log = _current = Log(cache_dir() / "logs" / f"{name}.log")
    before = sys.stdout, sys.stderr
    streams = _Stream("stdout", log), _Stream("stderr", log)
    sys.stdout, sys.stderr = streams
    warnings.formatwarning = _format
    try:
        yield
    except Exception:
        log.tell(before[1])
        raise
    finally:
        for stream in streams:
            stream.end()
        sys.stdout, sys.stderr = before
        warnings.formatwarning = _format_warning
        log.close()
        _current = None


def log_beside(directory: Path) -> None:
    """The log of this command goes on in ``directory``, in the file ``libraries.log``."""
    if _current is not None:
        _current.move(directory / LOG_FILE)
