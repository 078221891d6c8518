"""Where files live outside the checkout. Standard library only: ``scripts/setup_env.py`` runs this before anything is
installed."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "DEEPMLF_CACHE"


def cache_dir() -> Path:
    """The user's cache: ``$DEEPMLF_CACHE``, else ``~/.cache/deepmlf_llm``. All of it can be made or fetched again."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given).expanduser().resolve() if given else Path.home() / ".cache" / "deepmlf_llm"


def downloads_dir() -> Path:
    """Files fetched at setup, as they came."""
    return cache_dir() / "downloads"


def base_models_dir() -> Path:
    """Base models converted to safetensors, one directory each."""
    return cache_dir() / "base_models"


def shown(path: Path) -> str:
    """``path`` for a message: relative to the working directory or to ``~``, where it lies below one of them."""
    path = path.absolute()
    if path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)
