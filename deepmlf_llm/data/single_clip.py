"""One clip without a label, as MMSA-FET's ``run_single`` writes it: ``{"audio": [t x d], "vision": [t x d], ...}``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deepmlf_llm.data.file_kind import PICKLE, file_kind
from deepmlf_llm.data.mmsa import modality_columns
from deepmlf_llm.data.source_names import Reading, split_keys
from deepmlf_llm.data.unpickle import load_pickle
from deepmlf_llm.data.values import read_frames, read_numbers, read_text
from deepmlf_llm.errors import DataError

TEXTS = ("raw_text", "text", "transcript")


def is_single_clip(tree: Any) -> bool:
    """Whether a pickle's content is one clip: no splits, no rows, and features with one axis of time."""
    if not isinstance(tree, dict) or split_keys([key for key in tree if isinstance(tree[key], (dict, list))], "a clip"):
        return False
    if isinstance(tree.get("id"), (list, tuple, np.ndarray)) and np.size(tree["id"]) > 1:
        return False
    shapes = [np.shape(tree[name]) for name in modality_columns(tree) if isinstance(tree[name], np.ndarray)]
    return any(len(shape) in (1, 2) or (len(shape) == 3 and shape[0] == 1) for shape in shapes)


def read_single_clip(
    path: Path | str, text: str | None = None, rename: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Reads one clip.

    Args:
        path: the pickle; nothing in it is executed.
        text: the transcript, where the file has none.
        rename: name in the file -> name of the modality; visual, video and acoustic need no word.

    Returns:
        ``id`` (the file's, else its name), ``text``, and for each modality its raw frames [t x d].

    Raises:
        DataError: another kind of file or content, no transcript anywhere, or frames that are not numbers.
    """
    path = Path(path)
    kind = file_kind(path)
    if kind.name != PICKLE:
        raise kind.refuse(path)
    tree = load_pickle(path)
    if not is_single_clip(tree):
        found = ", ".join(map(str, list(tree)[:8])) if isinstance(tree, dict) else f"a {type(tree).__name__}"
        raise DataError(f"{path}: is not a single clip: expected audio and vision [frames x dims], found {found}")
    clip: dict[str, Any] = {"id": _string(tree.get("id")) or path.stem, "text": text or _transcript(tree)}
    if not clip["text"]:
        raise DataError(f"{path}: has no transcript (raw_text), only features of one: give the transcript beside it")
    present = modality_columns(tree, tuple(rename or ()))
    for name, key in Reading("mosi", rename=rename or {}).keys(present, str(path), []).items():
        clip[name] = _frames(tree, key, f"{path}: {key}")
    return clip


def _transcript(tree: Mapping[str, Any]) -> str | None:
    return next((text for name in TEXTS if (text := _string(tree.get(name)))), None)


def _string(value: Any) -> str | None:
    """A string, or the one string in a list or array; None for anything else."""
    if isinstance(value, (list, tuple, np.ndarray)) and np.size(value) == 1:
        value = np.asarray(value, dtype=object).reshape(-1)[0]
    try:
        return read_text(value)
    except ValueError:
        return None


def _frames(tree: Mapping[str, Any], key: str, where: str) -> np.ndarray:
    value = tree[key]
    if isinstance(value, np.ndarray) and value.ndim == 3 and len(value) == 1:
        value = value[0]  # a batch of one
    frames = read_frames(value, where)
    if (length := tree.get(f"{key}_lengths")) is None:
        return frames
    numbers = read_numbers(np.atleast_1d(np.asarray(length)), f"{where}_lengths")
    if len(numbers) != 1 or not 0 <= numbers[0] <= len(frames) or numbers[0] % 1:
        raise DataError(f"{where}_lengths is {length}, but there are {len(frames)} frames")
    return frames[: int(numbers[0])]
