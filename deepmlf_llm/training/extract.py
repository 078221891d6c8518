"""An adapter out of a checkpoint, without the run: no base model is loaded, nothing is trained."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from deepmlf_llm.adapters import files
from deepmlf_llm.adapters.card import CARD
from deepmlf_llm.errors import AdapterError, FileError
from deepmlf_llm.files import check_room, directory_aside
from deepmlf_llm.paths import shown
from deepmlf_llm.reading import parse_json
from deepmlf_llm.training import checkpoints

NEWEST, BEST = "newest", "best"
_LOG = "trainer_state.json"


def find_checkpoint(source: Path, which: str) -> Path:
    """The checkpoint that is meant.

    Args:
        source: its directory, or that of a run.
        which: of a run: ``newest`` or ``best``, until then by validation.

    Raises:
        AdapterError: there is none that is whole.
    """
    if not source.is_dir():
        raise AdapterError(f"{shown(source)}: not there; expected a checkpoint's directory or a run's")
    found = source
    if checkpoints.step_of(source) is None:
        newest, skipped = checkpoints.newest_whole(source)
        if newest is None:
            reasons = "; ".join(f"{path.name}: {reason}" for path, reason in skipped.items())
            raise AdapterError(f"{shown(source)}: holds no whole checkpoint{f' ({reasons})' if reasons else ''}")
        found = newest
    if which == BEST:
        found = checkpoints.best_of(found) or found
    if (reason := checkpoints.flaw(found)) is not None:
        raise AdapterError(f"{shown(found)}: no whole checkpoint: {reason}")
    if not (found / files.CONFIG).is_file():
        raise AdapterError(f"{shown(found)}: holds no adapter; a checkpoint of `deepmlf pretrain-av` has none")
    return found


def extract_adapter(source: Path, output: Path, which: str = NEWEST) -> dict[str, Any]:
    """Writes the adapter of a checkpoint, verified, to a directory of its own.

    Args:
        source, which: as for :func:`find_checkpoint`. Every engine leaves trained weights whole in it, ZeRO-3 included.
        output: must not exist yet.

    Returns:
        checkpoint, step, tensors, values, and metrics: of the evaluation at that step, where there was one.

    Raises:
        AdapterError: no whole checkpoint, or its adapter is damaged or empty.
        FileError: the output exists, or cannot be written.
    """
    if output.exists():
        raise FileError(f"{shown(output)}: exists; move it away or name another directory")
    checkpoint = find_checkpoint(source, which)
    config, tensors = files.read_adapter(checkpoint)
    if empty := [name for name, tensor in tensors.items() if tensor.numel() == 0]:
        raise AdapterError(f"{shown(checkpoint)}: {len(empty)} of its tensors are empty, such as {empty[0]}")
    wanted = [checkpoint / name for name in (files.CONFIG, files.WEIGHTS, CARD) if (checkpoint / name).is_file()]
    check_room(output, sum(path.stat().st_size for path in wanted), "the adapter")
    with directory_aside(output) as aside:
        for path in wanted:
            shutil.copyfile(path, aside / path.name)
        files.seal(aside, config.package_versions or files.package_versions(), output)
        files.read_adapter(aside)
    return {
        "checkpoint": checkpoint,
        "step": checkpoints.step_of(checkpoint),
        "tensors": len(tensors),
        "values": sum(tensor.numel() for tensor in tensors.values()),
        "metrics": _metrics_at(checkpoint),
    }


def _metrics_at(checkpoint: Path) -> dict[str, float]:
    """What the evaluation at the checkpoint's step found; nothing where there was none."""
    path, step = checkpoint / _LOG, checkpoints.step_of(checkpoint)
    lines = parse_json(path.read_text(encoding="utf-8"), nan=True)["log_history"] if path.is_file() else []
    at_step = [line for line in lines if line.get("step") == step and any(name.startswith("eval_") for name in line)]
    found = at_step[-1] if at_step else {}
    return {name.removeprefix("eval_"): value for name, value in found.items() if name.startswith("eval_")}
