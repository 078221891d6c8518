"""What ``deepmlf extract-features`` writes: features of clips, and the recipe they were made by.

::

    DIR/features.json                     how each modality was made: dim, frame_rate, features, provenance
    DIR/label.csv                         the rows of the source, with their transcripts; written last
    DIR/clips/<video_id>$_$<clip_id>.npz  audio [t x d], vision [t x d] (absent: not in it), record (JSON as bytes)
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from deepmlf_llm.data.corpus import SPLITS, Corpus
from deepmlf_llm.data.label_table import read_label_table
from deepmlf_llm.data.npy_folder import TABLE, table_split
from deepmlf_llm.data.source_names import Reading
from deepmlf_llm.data.values import read_frames
from deepmlf_llm.errors import DataError
from deepmlf_llm.files import sha256
from deepmlf_llm.reading import read_json
from deepmlf_llm.tasks.classification import ClassificationTask

RECIPE, CLIPS = "features.json", "clips"
KIND, SCHEMA = "deepmlf_clip_features", 1
_LONGEST = 240  # bytes; with what stands around it while it is written, a file's name may have 255
_FACTS = {"dim": int, "frame_rate": float, "features": dict, "provenance": dict}


def clip_file(directory: Path, video: str, clip: str) -> Path:
    """Where the features of a clip lie. A name that is too long for a file ends in a digest of it."""
    name = f"{video}$_${clip}"
    quoted = quote(name, safe="$ ")
    if len(quoted) > _LONGEST:
        quoted = f"{quoted[: _LONGEST - 17]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return directory / CLIPS / f"{quoted}.npz"


def read_recipe(directory: Path) -> dict[str, dict[str, Any]]:
    """How the features in a folder were made: modality -> dim, frame_rate, features, provenance.

    Raises:
        DataError: no such folder, or a damaged recipe.
    """
    path = directory / RECIPE
    try:
        told = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: no recipe of features can be read there ({error})") from None
    modalities = told.get("modalities") if isinstance(told, dict) else None
    if not isinstance(modalities, dict) or (told.get("kind"), told.get("schema")) != (KIND, SCHEMA):
        raise DataError(f"{path}: is no recipe of features (expected kind {KIND}, schema {SCHEMA})")
    for name, facts in modalities.items():
        wrong = [key for key, kind in _FACTS.items() if not isinstance(facts, dict) or type(facts.get(key)) is not kind]
        if wrong:
            raise DataError(f"{path}: damaged ({', '.join(wrong)} of {name})")
    return modalities


def read_clip_folder(directory: Path, reading: Reading) -> Corpus:
    """Reads extracted features.

    Args:
        directory: as above.
        reading: what is asked for; default: all modalities of the recipe.

    Raises:
        DataError: an extraction that did not end, rows or files that are wrong.
    """
    recipe = read_recipe(directory)
    table_path = directory / TABLE
    if not table_path.is_file():
        raise DataError(f"{directory}: no {TABLE}: the extraction did not end; the same command again goes on with it")
    content = table_path.read_bytes()
    digest = hashlib.sha256(content + sha256(directory / RECIPE).encode())
    table = read_label_table(content, table_path, reading.labelled, not isinstance(reading.task, ClassificationTask))
    notes = table.notes
    keys = reading.keys(recipe, str(directory), notes)
    features: dict[str, list[np.ndarray]] = {name: [] for name in keys}
    for row in table.rows:
        arrays = _arrays(clip_file(directory, row["video_id"], row["clip_id"]), digest)
        for name, key in keys.items():
            dim = recipe[key]["dim"]
            frames = arrays.get(key, np.empty((0, dim), dtype=np.float32))
            if frames.shape[1] != dim:
                where = f"{row['video_id']}$_${row['clip_id']}"
                raise DataError(f"{directory}: {key} of {where} has {frames.shape[1]} columns, expected {dim}")
            features[name].append(frames)
    splits = {
        split: table_split(table, features, split, reading, table_path) for split in SPLITS if split in table.splits
    }
    source = {"kind": "clip_folder", "name": directory.resolve().name, "sha256": digest.hexdigest()}
    return Corpus(splits, source, notes, modalities={name: recipe[key] for name, key in keys.items()})


def _arrays(path: Path, digest: Any) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"{path}: is not there, but {TABLE} has its row; run the extraction again")
    content = path.read_bytes()
    digest.update(content)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            named = {name: archive[name] for name in archive.files if name not in ("record", "face_found")}
    except Exception as error:  # a damaged archive can fail in any way
        raise DataError(
            f"{path}: damaged ({type(error).__name__}: {error}); delete it, run the extraction again"
        ) from None
    return {name: read_frames(array, f"{path}: {name}") for name, array in named.items()}
