"""GGUF files as base models: converted once into the user's cache (safetensors, bf16), checked at each use."""

from __future__ import annotations

import json
import re
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any

from deepmlf_llm.backbones.foreign_code import NO_CODE
from deepmlf_llm.backbones.whole import check_loaded
from deepmlf_llm.errors import BaseModelError, FileError
from deepmlf_llm.extras import require
from deepmlf_llm.files import directory_aside, make_directory, sha256, temporary_directory, writing
from deepmlf_llm.paths import base_models_dir
from deepmlf_llm.reading import read_json

SUFFIX = ".gguf"
RECORD = "conversion.json"  # what was converted, and the sha256 of each file that it made
_SPLIT = re.compile(r"-\d{5}-of-(\d{5})\.gguf$", re.IGNORECASE)
_VERSIONS = (2, 3)
_CONFIGS = ("config.json", "adapter_config.json")


def gguf_file(name: str) -> Path | None:
    """The GGUF file that ``name`` means: itself, or the only one in a directory without a config; None: neither.

    Raises:
        BaseModelError: one part of a split model, or a directory with several files.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if any((path / config).is_file() for config in _CONFIGS):
            return None
        found = sorted(file for file in path.iterdir() if file.suffix.lower() == SUFFIX and file.is_file())
        if not found:
            return None
        whole = [file for file in found if not _SPLIT.search(file.name)]
        if len(whole) > 1:
            names = ", ".join(file.name for file in whole[:6])
            raise BaseModelError(f"base_model={name!r}: holds {len(whole)} GGUF files; name one of {names}")
        path = whole[0] if whole else found[0]
    elif path.suffix.lower() != SUFFIX or not path.is_file():
        return None
    if parts := _SPLIT.search(path.name):
        raise BaseModelError(
            f"base_model={name!r}: {path.name} is one of {int(parts[1])} parts of a split model; join them first: "
            "llama-gguf-split --merge FIRST_PART WHOLE.gguf"
        )
    return path


def gguf_directory(file: Path, name: str, target: Path | None = None) -> Path:
    """The directory of the converted copy of ``file``; converted where there is none, or a damaged one.

    Args:
        file: the GGUF file.
        name: what the user calls it.
        target: where the copy lies; default: a place in the cache named after the file and its content.

    Raises:
        BaseModelError: no GGUF, damaged, truncated, or of an architecture that transformers cannot convert.
    """
    check_start(file, name)
    source = _sha256(*_identity(file))
    if target is None:
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem)[:60]
        target = base_models_dir() / f"{stem}-{source[:16]}"
    if _is_whole(target, source):
        return target
    from filelock import FileLock

    check_gguf(file, name)
    try:
        make_directory(target.parent)
        with writing(target), FileLock(str(target) + ".lock"):
            if not _is_whole(target, source):  # else another process was faster
                with directory_aside(target, replace=True) as aside:
                    _convert(file, name, source, aside)
    except FileError as error:  # a cache: whoever needs the model can do without it
        target = temporary_directory(str(error)) / target.name
        if not _is_whole(target, source):
            with directory_aside(target, replace=True) as aside:
                _convert(file, name, source, aside)
    return target


def _convert(file: Path, name: str, source: str, aside: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    origin: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name, **NO_CODE}
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            **origin,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(**origin)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # whatever the readers of a foreign format say is about the file
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise BaseModelError(f"base_model={name!r}: this GGUF file cannot be converted: {reason}") from error
    check_loaded(model, info, name)
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    made = {path.name: sha256(path) for path in sorted(aside.iterdir())}
    record = {"gguf": file.name, "sha256": source, "files": made}
    (aside / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _is_whole(directory: Path, source: str | None = None) -> bool:
    """Whether a converted copy is of ``source`` and every file of it is as it was written."""
    try:
        record = read_json(directory / RECORD)
        if source is not None and record["sha256"] != source:
            return False
        files = record["files"].items()
        return bool(files) and all(_sha256(*_identity(directory / name)) == digest for name, digest in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def is_converted(directory: Path) -> bool:
    """Whether it holds the converted copy of a GGUF file."""
    return (directory / RECORD).is_file()


def _identity(path: Path) -> tuple[Path, int, int]:
    state = path.stat()
    return path.resolve(), state.st_size, state.st_mtime_ns


@lru_cache(maxsize=256)
def _sha256(path: Path, size: int, changed: int) -> str:
    """Of a file's content; read once a process while size and time of change stay."""
    return sha256(path)


def check_start(file: Path, name: str) -> None:
    """``file`` begins as a GGUF file of a version that can be read.

    Raises:
        BaseModelError: it does not.
    """
    with file.open("rb") as stream:
        start = stream.read(24)
    if start.startswith(b"version https://git-lfs"):
        raise BaseModelError(f"base_model={name!r}: a git-lfs pointer, not the model: run `git lfs pull`")
    if start[:4] != b"GGUF":
        raise BaseModelError(f"base_model={name!r}: no GGUF file: it begins with {start[:4]!r}, not b'GGUF'")
    if len(start) < 24:
        raise BaseModelError(f"base_model={name!r}: truncated: a GGUF header alone is longer than {len(start)} bytes")
    version = struct.unpack("<I", start[4:8])[0]
    if version not in _VERSIONS:
        raise BaseModelError(f"base_model={name!r}: GGUF version {version}; versions 2 and 3 can be read")


def check_gguf(file: Path, name: str) -> None:
    """``file`` is a whole GGUF model of one part; reads its header, which takes seconds.

    Raises:
        BaseModelError: damaged, truncated, without tensors, or one part of several.
    """
    gguf = require("gguf", f"base_model={name!r}: a GGUF file")
    try:
        reader = gguf.GGUFReader(file)
        parts = reader.get_field("split.count")
        count = int(parts.contents()) if parts is not None else 1
        architecture = reader.get_field("general.architecture")
        tensors = len(reader.tensors)
    except Exception as error:  # the reader maps the file, and meets whatever stands there
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BaseModelError(f"base_model={name!r}: a GGUF file that is damaged or truncated: {reason}") from error
    if count > 1:
        raise BaseModelError(
            f"base_model={name!r}: one of {count} parts of a split model; join them first: "
            "llama-gguf-split --merge FIRST_PART WHOLE.gguf"
        )
    if architecture is None or not tensors:
        raise BaseModelError(
            f"base_model={name!r}: a GGUF file without {'tensors' if architecture else 'an architecture'}"
        )
