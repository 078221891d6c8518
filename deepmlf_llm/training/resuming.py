"""``--resume auto | never | CHECKPOINT``: where a run goes on from."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from deepmlf_llm.errors import RunError
from deepmlf_llm.files import directory_aside, write_aside
from deepmlf_llm.paths import shown
from deepmlf_llm.training import checkpoints
from deepmlf_llm.training.launch import Launch
from deepmlf_llm.training.metrics_log import METRICS_FILE
from deepmlf_llm.training.run_directory import CONFIG, FACTS, ORDER, RunDirectory
from deepmlf_llm.training.run_identity import Difference, in_words
from deepmlf_llm.training.settings import RunSettings
from deepmlf_llm.training.trusted import check_owner

AUTO, NEVER = "auto", "never"


def agreed_checkpoint(directory: RunDirectory, trust_run: bool, launch: Launch) -> tuple[Path | None, list[str]]:
    """The checkpoint that all processes go on from, as the first one finds it (None: from the start), and a sentence
    for each that was skipped."""
    found = directory.resume_from(trust_run) if launch.is_main else None
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        box = [found]
        torch.distributed.broadcast_object_list(box, src=0)
        found = box[0]
    return found or (None, [])


def check_resume(resume: str, directory: RunDirectory) -> None:
    """Before anything loads or is written, whether the run can go on as asked.

    Args:
        resume: ``auto``: from the newest whole checkpoint, where there is one. ``never``: the directory must hold no
            run. Else a checkpoint's directory, of this run or of the same run elsewhere.
        directory: of the run.

    Raises:
        RunError: it cannot; the message says why.
    """
    if resume == AUTO:
        return
    name = shown(directory.path)
    held = checkpoints.all_checkpoints(directory.path)
    if resume == NEVER:
        if held or directory.finished() is not None:
            raise RunError(f"--resume never: {name} holds a run; choose another output_dir, or remove it yourself")
        return
    found = Path(resume).expanduser()
    if not found.is_dir() or checkpoints.step_of(found) is None:
        raise RunError(f"--resume {resume}: no checkpoint; expected auto, never or a directory .../checkpoint-N")
    if reason := checkpoints.flaw(found):
        raise RunError(f"--resume {resume}: not whole: {reason}")
    best = checkpoints.best_of(found)
    if best is not None and (reason := checkpoints.flaw(best)):
        raise RunError(f"--resume {resume}: the best one until then, {best.name}, is not whole: {reason}")
    if _is_own(found, directory):
        return
    if held or directory.finished() is not None:
        raise RunError(f"--resume {resume}: {name} holds a run already; choose another output_dir")
    elsewhere = RunDirectory(
        found.parent, directory.settings, directory.fingerprint, directory.facts, directory.product
    )
    if not (found.parent / FACTS).is_file():
        raise RunError(f"--resume {resume}: {shown(found.parent)} is no run: it has no {FACTS}")
    elsewhere.check()
    if elsewhere.order != ORDER:
        raise RunError(f"--resume {resume}: of a run that an earlier version began; go on with it where it is")
    directory.changed = elsewhere.changed


def is_elsewhere(resume: str, directory: RunDirectory) -> bool:
    """Whether the run begins with a checkpoint of another directory."""
    return resume not in (AUTO, NEVER) and not _is_own(Path(resume).expanduser(), directory)


def take_checkpoint(resume: str, directory: RunDirectory, trusted: bool) -> list[str]:
    """Makes the checkpoint that is asked for the newest of the run; the process that claimed the directory calls this.

    Later ones of the run are set aside under another name, and none is removed.

    Args:
        resume, directory: as for :func:`check_resume`, which has been called.
        trusted: take files that others could have written.

    Returns:
        What was done, a sentence each.

    Raises:
        RunError: others could have written it, and ``trusted`` is not set.
        FileError: it cannot be copied.
    """
    if resume in (AUTO, NEVER):
        return []
    found = Path(resume).expanduser()
    if _is_own(found, directory):
        own = checkpoints.all_checkpoints(directory.path)
        return [_set_aside(later) for later in own if _step(later) > _step(found)]
    best = checkpoints.best_of(found)
    parts = [found, *([] if best is None else [best])]
    if not trusted:
        check_owner(found.parent, parts)
    for file in (METRICS_FILE, CONFIG, FACTS):  # the last one makes it a run that was begun
        if (found.parent / file).is_file():
            write_aside(directory.path / file, (found.parent / file).read_bytes())
    for part in reversed(parts):
        with directory_aside(directory.path / part.name) as aside:
            shutil.copytree(part, aside, dirs_exist_ok=True)
    directory.recall()
    return [f"{found.name} of {shown(found.parent)} is taken over"]


def notes_of(changed: list[Difference], settings: RunSettings) -> list[str]:
    """What is said as a run goes on in another world than before."""
    if not changed:
        return []
    parts = ["steps hold the same utterances", "dropout is drawn anew from here on"]
    if settings.cmixup_alpha:
        parts.append("C-Mixup's partners are of other batches")
    if settings.method.get("head_norm", "batch") == "batch":
        parts.append("BatchNorm in the task head sees other batches (head_norm layer would not)")
    return [f"in another world: {in_words(changed)}; {', '.join(parts)}"]


def _is_own(found: Path, directory: RunDirectory) -> bool:
    return found.resolve().parent == directory.path.resolve()


def _step(checkpoint: Path) -> int:
    return checkpoints.step_of(checkpoint) or 0


def _set_aside(later: Path) -> str:
    place = later.with_name(f"{later.name}.later")
    number = 1
    while place.exists():
        number += 1
        place = later.with_name(f"{later.name}.later-{number}")
    later.rename(place)
    return f"{later.name} is set aside as {place.name}"
