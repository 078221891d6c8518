"""Checkpoints that a kill cannot damage: written, synced, then declared whole by a manifest that is renamed in last.

A directory without a manifest that fits it is not a checkpoint. The previous one goes only after the new one is whole.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepmlf_llm.files import sha256, sync, write_aside, writing
from deepmlf_llm.reading import parse_json, read_json

MANIFEST = "checkpoint.json"
_NAME = re.compile(r"^checkpoint-(\d+)$")


def commit(directory: Path, facts: dict[str, Any] | None = None) -> None:
    """Declares the files of ``directory`` a whole checkpoint; ``facts`` are kept with it."""
    files = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST):
        sync(path)
        files[path.relative_to(directory).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    write_aside(directory / MANIFEST, json.dumps({"files": files, **(facts or {})}, indent=1) + "\n")


@contextmanager
def being_written(directory: Path, needed: int | None = None) -> Iterator[None]:
    """A checkpoint that cannot be written goes at once, with what it takes up; those before it stay.

    Args:
        directory: of the checkpoint.
        needed: bytes, about: for the message.

    Raises:
        FileError: no room, no permission; in the place of the error of the library that wrote.
    """
    with writing(directory, needed):
        try:
            yield
        except Exception:
            remove(directory)
            raise


def flaw(directory: Path) -> str | None:
    """Why ``directory`` is not a whole checkpoint; None where it is one."""
    try:
        files = {
            name: (facts["bytes"], facts["sha256"]) for name, facts in read_json(directory / MANIFEST)["files"].items()
        }
    except FileNotFoundError:
        return "it was cut while being written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"its {MANIFEST} is damaged"
    for name, (size, digest) in files.items():
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size or sha256(path) != digest:
            return f"{name} is damaged"
    return None


def step_of(directory: Path) -> int | None:
    """The step in the name of a checkpoint directory; None for another name."""
    match = _NAME.match(directory.name)
    return int(match[1]) if match else None


def all_checkpoints(run: Path) -> list[Path]:
    """Directories named like checkpoints, the newest (largest step) first, whole or not."""
    found = [p for p in run.iterdir() if p.is_dir() and step_of(p) is not None] if run.is_dir() else []
    return sorted(found, key=lambda p: -int(step_of(p) or 0))


def newest_whole(run: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest checkpoint that a run can go on from (None: there is none), and what is wrong with newer ones.

    It is whole, and so is the best one until then, which the run would need at its end.
    """
    skipped: dict[Path, str] = {}
    for directory in all_checkpoints(run):
        reason = flaw(directory)
        if reason is None and (best := best_of(directory)) is not None and (worse := flaw(best)) is not None:
            reason = f"the best one until then, {best.name}, is not whole: {worse}"
        if reason is None:
            return directory, skipped
        skipped[directory] = reason
    return None, skipped


def best_of(directory: Path) -> Path | None:
    """The best checkpoint when ``directory`` was written, where that is another one."""
    path = directory / "trainer_state.json"
    step = parse_json(path.read_text(), nan=True).get("best_global_step") if path.is_file() else None
    return None if step is None or step == step_of(directory) else directory.with_name(f"checkpoint-{step}")


def prune(
    run: Path, keep: int | None, best_step: int | None, newest: int | None = None, also: Collection[int] = ()
) -> None:
    """Removes all but the ``keep`` newest checkpoints and those of ``best_step`` and of steps in ``also``; None keeps
    all.

    Those after step ``newest`` do not count: they are what a kill left, and would push out whole ones.
    """
    if keep is None:
        return
    known = [p for p in all_checkpoints(run) if newest is None or int(step_of(p) or 0) <= newest]
    for directory in known[max(keep, 1) :]:
        if step_of(directory) not in (best_step, *also):
            remove(directory)


def drop_checkpoints(run: Path) -> None:
    """Of a finished run: its adapter stays, the states of its optimizer go."""
    for checkpoint in all_checkpoints(run):
        remove(checkpoint)


def remove(directory: Path) -> None:
    """Removes a checkpoint, its manifest first: a kill in between leaves no half that looks whole."""
    (directory / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)
