"""Where an adapter's base model is: a hub id, or a path that is kept absolute and relative to the adapter."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from deepmlf_llm.backbones.smollm2 import SMOLLM2
from deepmlf_llm.backbones.toys import TOYS
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.errors import AdapterError
from deepmlf_llm.reading import parse_json

NAME, RELATIVE, REVISION = "base_model_name_or_path", "base_model_relative", "revision"
_HUB_IDS = {SMOLLM2: "HuggingFaceTB/SmolLM2-135M-Instruct"}
_CACHED = "models--"  # how the hub's cache calls the folder of a model: models--owner--name


def is_built_in(name: str) -> bool:
    """Whether ``name`` is a base model that this package makes, and no path."""
    return name in TOYS or name == SMOLLM2


def location_of(name: str | None, home: Path) -> dict[str, str | None]:
    """What an adapter in ``home`` records about where its base is.

    Args:
        name: hub id, path of a directory or file, or a name of this package.
        home: directory that the adapter will be in.

    Returns:
        ``base_model_name_or_path`` (absolute where it is a path) and ``base_model_relative`` (a path from ``home``,
        None where it is none).
    """
    if not name or is_built_in(name) or not Path(name).expanduser().exists():
        return {NAME: name, RELATIVE: None}
    path = Path(name).expanduser().absolute()
    return {NAME: str(path), RELATIVE: Path(os.path.relpath(path, home.absolute())).as_posix()}


def find_base(config: DeepMLFConfig, source: str | Path) -> str:
    """The base that an adapter names: the first of its recorded places where something is, or a hub id.

    Args:
        config: of the adapter.
        source: directory of the adapter.

    Raises:
        AdapterError: it names none, or a path where nothing is; the message names every place.
    """
    name = config.base_model_name_or_path
    if not name:
        raise AdapterError(f"{source}: names no base model; {_TELL}")
    name = str(name)
    if is_built_in(name):
        return name
    relative = config.base_model_relative or (None if Path(name).is_absolute() else name)
    places = [Path(name).expanduser()] + ([Path(source) / relative] if relative else [])
    for place in places:
        if _exists(place):
            return os.path.normpath(place)
    if _is_path(name) or config.base_model_relative:
        tried = " nor at ".join(dict.fromkeys(os.path.abspath(place) for place in places))
        raise AdapterError(f"{source}: its base model is not at {tried}; {_TELL}")
    return name


_TELL = "give the base model's place or hub id with --base_model (base=...)"


def not_found(source: str | Path, error: Exception) -> AdapterError:
    """The error for a hub id (or a path that looks like one) that leads nowhere."""
    return AdapterError(f"{source}: {error}; {_TELL}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _is_path(name: str) -> bool:
    return Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or "\\" in name


def hub_id(name: str | None) -> str | None:
    """The hub's name for a base model, where it has one.

    Args:
        name: hub id, path, or a name of this package.
    """
    if not name or name in TOYS:
        return None
    if name in _HUB_IDS:
        return _HUB_IDS[name]
    path = Path(name).expanduser()
    for part in path.parts:
        if part.startswith(_CACHED) and part.count("--") == 2:
            return part.removeprefix(_CACHED).replace("--", "/")
    if not _exists(path):
        return None if _is_path(name) else name
    try:
        found = parse_json((path / "config.json").read_bytes(), nan=True).get("_name_or_path")
    except (OSError, ValueError, AttributeError):
        return None
    is_id = isinstance(found, str) and found.count("/") == 1 and not _is_path(found) and not Path(found).exists()
    return found if is_id else None


def shown_name(name: str | None) -> str:
    """The base model's name for people: hub id, name of this package, or the last part of a path."""
    return hub_id(name) or Path(str(name or "unknown")).name


def without_paths(values: dict[str, Any]) -> dict[str, Any]:
    """An adapter's config for others to read: of a path on this machine, only the hub id or the last part is left."""
    name = values.get(NAME)
    if not isinstance(name, str) or is_built_in(name) or not _is_path(name):
        return values
    return {**values, NAME: shown_name(name), RELATIVE: None}
