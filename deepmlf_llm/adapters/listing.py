"""A list of a directory's files with sizes and hashes: what is loaded from it is what was saved, and all of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from deepmlf_llm.errors import AdapterError
from deepmlf_llm.files import sha256
from deepmlf_llm.reading import read_json

# What transformers would read as weights or settings if it lay there.
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".npz", ".pkl"}
_SETTINGS = {".json", ".jinja", ".model", ".py"}
_WORDS = {"merges.txt", "vocab.txt"}
_HASH = re.compile(r"[0-9a-f]{64}")


def list_files(directory: Path, listing: Path, apart: tuple[str, ...]) -> None:
    """Notes size and hash of every file below ``directory``.

    Args:
        directory: whose files.
        listing: JSON to write: path below ``directory`` -> ``bytes`` and ``sha256``.
        apart: files and folders that are not listed: what carries hashes of its own, what anyone may edit.
    """
    facts = {name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for name, path in _files(directory, apart)}
    listing.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def listed_names(listing: Path) -> set[str]:
    """Paths that a list names; none where there is no list, or no whole one."""
    try:
        return set(_read(listing))
    except AdapterError:
        return set()


def check_listed(directory: Path, listing: Path, apart: tuple[str, ...]) -> None:
    """The files are the ones that were saved, and nothing lies beside them that would be loaded as well.

    A list of the first version names the weights only; of those directories only the weights are checked.

    Raises:
        AdapterError: no list or an empty one; a file is missing, changed, or not listed.
    """
    facts = _read(listing)
    if not any(Path(name).suffix in _WEIGHTS for name in facts):
        raise AdapterError(f"{listing}: damaged: it lists no weights; save the merged model again")
    for name, (size, digest) in facts.items():
        path = directory / name
        if not path.is_file():
            raise AdapterError(f"{path}: missing")
        if path.stat().st_size != size or sha256(path) != digest:
            raise AdapterError(f"{path}: damaged or exchanged: its size or sha256 is not the one in {listing.name}")
    loaded = _WEIGHTS | _SETTINGS | _WORDS if "config.json" in facts else _WEIGHTS
    found = {name for name, path in _files(directory, apart) if {path.suffix, path.name} & loaded}
    strange = sorted(found - facts.keys())
    if strange:
        raise AdapterError(
            f"{directory}: holds {', '.join(strange[:4])}, which {listing.name} does not list and which would be "
            "loaded; move it away"
        )


def _files(directory: Path, apart: tuple[str, ...]) -> list[tuple[str, Path]]:
    """Files below a directory by their paths in it, without hidden ones (of a version control, of a download)."""
    found = []
    for path in sorted(directory.rglob("*")):
        parts = path.relative_to(directory).parts
        if path.is_file() and parts[0] not in apart and not any(part.startswith(".") for part in parts):
            found.append(("/".join(parts), path))
    return found


def _read(listing: Path) -> dict[str, tuple[int, str]]:
    try:
        facts = {str(name): (int(f["bytes"]), str(f["sha256"])) for name, f in read_json(listing).items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise AdapterError(f"{listing}: damaged or missing: {error}") from error
    for name, (_, digest) in facts.items():
        if not _HASH.fullmatch(digest) or Path(name).is_absolute() or ".." in Path(name).parts:
            raise AdapterError(f"{listing}: damaged: {name!r} is not a file of this directory with a sha256")
    return facts
