"""Who works on what in a study folder that several nodes share: claims, each a file that only one node can create.

A place's claims are numbered: ``claim-1.json``, ``claim-2.json``, .. and the highest number counts. Whoever takes over
creates the next one, which the file system grants to one node only (``O_EXCL``; locks are not needed, which shared file
systems often lack). No number is ever used again, so nobody can take over a claim other than the one that was judged.
A node rewrites only its own claims: to name the process that works for it, and to release them.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepmlf_llm.files import make_directory, write_aside, writing
from deepmlf_llm.reading import read_json
from deepmlf_llm.study.node import Node, is_alive, is_gone, process_mark

_NAME = re.compile(r"claim-(\d+)\.json")


@dataclass(frozen=True)
class Claim:
    """A place that is this node's, until it is released or lost.

    Args:
        folder: of what is claimed.
        number: of the claim there.
        node: that holds it.
    """

    folder: Path
    number: int
    node: Node

    @property
    def path(self) -> Path:
        return _path(self.folder, self.number)

    def is_held(self) -> bool:
        """Whether nobody has taken it over, and what says that it is this node's still lies there.

        Where the place was removed and made again, its numbers began anew: this one may be another node's by now.
        """
        if _path(self.folder, self.number + 1).exists():
            return False
        try:
            content = read_json(self.path)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return False
        except OSError:  # the file system is away; if it stays so, no heartbeat is written and the guards end the cells
            return True
        return isinstance(content, dict) and content.get("node") == self.node.name

    def name_worker(self, pid: int) -> None:
        """Records the process that works on it: where its node dies, others on the machine wait for its end."""
        self._write("held", process_mark(pid))

    def release(self) -> None:
        """Lets the next one take it at once."""
        if self.is_held():
            self._write("released", None)

    def _write(self, state: str, worker: Any) -> None:
        write_aside(self.path, _content(self.node, state, worker))


def take(node: Node, folder: Path) -> Claim | None:
    """Claims a place; None where another node holds it.

    Args:
        node: this one.
        folder: of what is claimed; made where it is missing.

    Raises:
        FileError: nothing can be written there.
    """
    make_directory(folder)
    highest = max((int(m[1]) for name in os.listdir(folder) if (m := _NAME.fullmatch(name))), default=0)
    if highest and not _is_free(node, folder, highest):
        return None
    claim = Claim(folder, highest + 1, node)
    with writing(claim.path):
        try:
            descriptor = os.open(claim.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return None
        with os.fdopen(descriptor, "w") as file:
            file.write(_content(node, "held", None))
            file.flush()
            os.fsync(file.fileno())
    return claim


@contextmanager
def turn(node: Node, folder: Path, wait: float = 0.5, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Holds a place for a short work that every node does, one after another; waits until it is free.

    Args:
        node: this one.
        folder: of what is claimed.
        wait: seconds between looks.
        say: gets one line where it has to be waited for.
    """
    while (claim := take(node, folder)) is None:
        if say is not None:
            say("another process has its turn to write the report; waiting for its end")
            say = None
        time.sleep(wait)
    try:
        yield
    finally:
        claim.release()


def _is_free(node: Node, folder: Path, number: int) -> bool:
    try:
        content = read_json(_path(folder, number))
        owner, process, state, worker = (content[name] for name in ("node", "process", "state", "worker"))
    except (OSError, ValueError, KeyError, TypeError):
        # Whoever created it has died before a word stood there, or is about to write it.
        return node.unchanged(f"claim {_path(folder, number)}", "unreadable") > node.lease
    if state == "released":
        return True
    # A node on this machine is seen to be gone at once, and its work may end a moment later.
    return (is_gone(process) or node.is_dead(owner)) and not is_alive(worker)


def _content(node: Node, state: str, worker: Any) -> str:
    process = process_mark(os.getpid())
    return json.dumps({"node": node.name, "process": process, "state": state, "worker": worker}) + "\n"


def _path(folder: Path, number: int) -> Path:
    return folder / f"claim-{number}.json"
