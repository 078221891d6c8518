"""Reading one's own run again without running what lies in it.

A checkpoint's optimizer, scheduler and random states are torch files, which are pickles. They are read with
``weights_only``: tensors, numbers and the few types listed here, whoever reads them (transformers, DeepSpeed). And a
run directory that others could have written to is refused unless the user trusts it.
"""

from __future__ import annotations

import os
import pickle
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deepmlf_llm.errors import RunError
from deepmlf_llm.paths import shown

_FORCE, _FORBID = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_WRITABLE_BY_GROUP, _WRITABLE_BY_ALL = stat.S_IWGRP, stat.S_IWOTH


@contextmanager
def tensors_only(source: str | Path | None = None) -> Iterator[None]:
    """Inside, ``torch.load`` reads tensors, numbers and listed types only, even where it is told otherwise.

    Args:
        source: what is read, for messages.

    Raises:
        RunError: a file holds something else; nothing of it was run.
    """
    before = {name: os.environ.pop(name, None) for name in (_FORCE, _FORBID)}
    os.environ[_FORCE] = "1"  # torch's own switch: DeepSpeed asks for weights_only=False
    try:
        with torch.serialization.safe_globals(_listed_types()):
            yield
    except pickle.UnpicklingError as error:
        where = "" if source is None else f"{shown(Path(source))}: "
        what = re.search(r"GLOBAL (\S+)", str(error))
        raise RunError(
            f"{where}a file of this checkpoint holds something else than tensors and numbers, and was not read "
            f"({what[1] if what else 'refused by weights_only'}); delete the checkpoint to go on from an older one"
        ) from None
    finally:
        del os.environ[_FORCE]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _listed_types() -> list[Any]:
    """numpy's arrays, and of DeepSpeed its own in its checkpoints: records and enumerations, whose construction does
    nothing."""
    import sys

    if "deepspeed" not in sys.modules:
        return _numpys()
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [*_numpys(), LossScaler, ZeroStageEnum, fragment_address]


def _numpys() -> list[tuple[Any, str]]:
    """What makes an array: it moved from numpy 1 to 2, and a checkpoint of either is read with the other."""
    rebuild = np.empty(0).__reduce__()[0]
    return [(rebuild, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]


def check_owner(run: Path, checkpoints: list[Path]) -> None:
    """Refuses to read checkpoints that others than this user could have written.

    Args:
        run: the directory of the run.
        checkpoints: in it.

    Raises:
        RunError: owned by another user, or writable by others.
    """
    if not hasattr(os, "geteuid"):
        return
    for path in (run, *(entry for checkpoint in checkpoints for entry in (checkpoint, *sorted(checkpoint.rglob("*"))))):
        if reason := _reason_for_doubt(path):
            raise RunError(
                f"{shown(path)} {reason}: a checkpoint that others could have changed is not read; if it is yours, "
                "add --trust_run"
            )


def _reason_for_doubt(path: Path) -> str | None:
    facts = path.stat()
    for owner in (path.lstat().st_uid, facts.st_uid):  # of a link, and of what it points to
        if owner != os.geteuid():
            return f"belongs to user {owner}, not to you ({os.geteuid()})"
    if facts.st_mode & _WRITABLE_BY_ALL:
        return "can be written by everybody"
    if facts.st_mode & _WRITABLE_BY_GROUP and not _is_private_group(facts.st_gid):
        return f"can be written by group {facts.st_gid}"
    return None


def _is_private_group(group: int) -> bool:
    """Whether a group has no member but this user, as systems with a umask of 002 make one for each user."""
    import grp
    import pwd

    try:
        user, found = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    return user.pw_gid == group and found.gr_name == user.pw_name and set(found.gr_mem) <= {user.pw_name}
