"""An adapter directory, format 1: ``adapter_model.safetensors``, ``adapter_config.json``, ``README.md``.

Safetensors and JSON only; nothing that could run is ever read. See docs/adapter-format.md.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepmlf_llm.adapters.base_location import location_of
from deepmlf_llm.adapters.seal import sealed, settings_digest
from deepmlf_llm.backbones import base_fingerprint, compare_fingerprints
from deepmlf_llm.config.method import PEFT_TYPE, SCHEMA_VERSION, DeepMLFConfig
from deepmlf_llm.errors import AdapterError, DeepMLFError
from deepmlf_llm.files import files_aside, sha256
from deepmlf_llm.reading import parse_json

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "README.md"
HEADER_LIMIT = 64 << 20  # bytes; a header names tensors, and ours has a few hundred
TENSORS_LIMIT = 20_000  # each costs time, even an empty one
CONFIG_LIMIT = 16 << 20  # bytes
FEW = 64
SHOWN = 4  # names an error message lists
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64)
# What torch and PEFT raise at settings that no model can be built from, e.g. a tensor of 2**70 elements.
_UNBUILDABLE = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
_REQUIRED = ("weights_sha256", "base_fingerprint")  # every adapter that was saved has them


def read_config(directory: str | Path) -> DeepMLFConfig:
    """The adapter's settings, strict.

    Raises:
        AdapterError: no such directory, no JSON, another kind of adapter, a newer format, unknown or bad settings.
    """
    path = Path(directory) / CONFIG
    if not path.is_file():
        raise AdapterError(f"{directory}: no {CONFIG}: expected the directory of a saved adapter")
    values, digest = parsed(path)
    if not isinstance(values, dict) or values.get("peft_type") != PEFT_TYPE:
        kind = values.get("peft_type") if isinstance(values, dict) else type(values).__name__
        raise AdapterError(f"{path}: an adapter of type {kind!r}, expected {PEFT_TYPE!r}")
    version = values.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= SCHEMA_VERSION:
        raise AdapterError(f"{path}: schema_version={version!r}; this package reads 1 to {SCHEMA_VERSION}")
    if values.get("settings_sha256") not in (None, digest):
        raise AdapterError(
            f"{path}: damaged or edited: its settings are not those of settings_sha256; where they were changed on "
            "purpose, take that key out"
        )
    if missing := [key for key in _REQUIRED if values.get(key) is None]:
        raise AdapterError(f"{path}: damaged or not an adapter that was saved whole: no {', '.join(missing)}")
    try:
        return DeepMLFConfig.from_dict(values)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise AdapterError(f"{path}: {error}") from error


def parsed(path: Path) -> tuple[Any, str | None]:
    """What a file of settings says, and the digest that its seal must hold; None where it is not a mapping.

    Raises:
        AdapterError: cannot be read, too large, or no JSON.
    """
    try:
        values = parse_json(content(path), settings=True)
        return values, settings_digest(values) if isinstance(values, dict) else None
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: damaged, is not JSON: {error}") from error


def content(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        AdapterError: it cannot be read, or holds more settings than there are.
    """
    try:
        if path.suffix == ".json" and path.stat().st_size > CONFIG_LIMIT:
            raise AdapterError(f"{path}: damaged: {path.stat().st_size} bytes; settings have at most {CONFIG_LIMIT}")
        return path.read_bytes()
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read: {error.strerror}") from error


def read_weights(directory: str | Path, config: DeepMLFConfig) -> dict[str, Tensor]:
    """The adapter's tensors, by the keys of the file; checked as far as the file itself allows.

    Raises:
        AdapterError: missing, truncated, changed (sha256), a header out of bounds, values that are not finite.
    """
    path = Path(directory) / WEIGHTS
    if not path.is_file():
        raise AdapterError(f"{directory}: no {WEIGHTS}: expected the directory of a saved adapter")
    return read_tensors(path, config.weights_sha256, CONFIG)


def read_tensors(path: Path, digest: str | None, told_by: str) -> dict[str, Tensor]:
    """The tensors of a file of ours, checked as far as the file itself allows.

    Args:
        path: of the file, which is there.
        digest: its sha256, where it is known.
        told_by: name of the file that says so.

    Raises:
        AdapterError: as :func:`read_weights`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    raw = content(path)
    length = int.from_bytes(raw[:8], "little") if len(raw) >= 8 else -1
    if not 2 <= length <= min(HEADER_LIMIT, len(raw) - 8):
        raise AdapterError(f"{path}: damaged: a header of {length} bytes in a file of {len(raw)}")
    if (count := raw.count(b"{", 8, 8 + length)) > TENSORS_LIMIT:
        raise AdapterError(f"{path}: damaged: some {count} tensors; an adapter has at most {TENSORS_LIMIT}")
    found = hashlib.sha256(raw).hexdigest()
    if digest is not None and found != digest:
        raise AdapterError(f"{path}: damaged or exchanged: its sha256 is not the one in {told_by}")
    try:
        tensors = load(raw)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise AdapterError(f"{path}: damaged: {error}") from error
    if strange := [f"{name} ({t.dtype})" for name, t in tensors.items() if t.dtype not in DTYPES]:
        raise AdapterError(f"{path}: tensors of a type that adapters do not have: {_some(strange)}")
    broken = [name for name, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if broken:
        raise AdapterError(f"{path}: values that are not finite in {_some(broken)}")
    return tensors


def read_adapter(directory: str | Path) -> tuple[DeepMLFConfig, dict[str, Tensor]]:
    """Settings and tensors of an adapter; see :func:`read_config` and :func:`read_weights`.

    Raises:
        AdapterError: as there.
    """
    config = read_config(directory)
    return config, read_weights(directory, config)


def check_base(config: DeepMLFConfig, base: nn.Module, source: str | Path) -> None:
    """The base is the one that the adapter was trained on.

    Raises:
        AdapterError: it is another, or no causal LM; the message says in what.
    """
    if getattr(getattr(base, "config", None), "get_text_config", None) is None:
        raise AdapterError(f"{source}: base={type(base).__name__} is not a causal language model of transformers")
    differences = compare_fingerprints(config.base_fingerprint or {}, base_fingerprint(base))
    if differences:
        seed = config.base_init_seed
        drawn = (
            f"; its base has random weights of seed {seed}, which other versions draw otherwise: see package_versions"
        )
        reason = "; ".join(differences) + ("" if seed is None else drawn)
        raise AdapterError(f"{source}: another base model; {reason}")


def check_fit(
    config: DeepMLFConfig,
    tensors: Mapping[str, Tensor],
    shape: Any,
    source: str | Path,
    build: Callable[[], Mapping[str, Tensor]],
) -> None:
    """The file's tensors are exactly those of modules with these settings on this base, decided from shapes alone.

    The modules are built once on the meta device: whatever sizes a damaged config asks for cost no memory.

    Args:
        config: of the adapter, or of the fusion modules of a merged model.
        tensors: of it, by the keys of its file.
        shape: the base on the meta device.
        source: for messages.
        build: makes the tensors that are expected; called with the meta device as default.

    Raises:
        AdapterError: another base, settings that do not fit it, tensors that do not fit them; by name.
    """
    check_base(config, shape, source)
    _check_size(config, tensors, source)
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the real one will warn
            expected = build()
    except DeepMLFError as error:
        raise AdapterError(f"{source}: {error}") from error
    except _UNBUILDABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise AdapterError(f"{source}: no adapter can be built from its settings: {reason}") from error
    check_tensors(tensors, expected, source)


def _check_size(config: DeepMLFConfig, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """The one size that costs time even where nothing is allocated: the AV encoder has no more layers than tensors."""
    layers = config.av_encoder.num_layers
    if layers * len(config.modalities) > max(len(tensors), FEW):  # of a few, check_tensors says more
        raise AdapterError(f"{source}: av_encoder.num_layers={layers}, but the file has only {len(tensors)} tensors")


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str | Path) -> None:
    """The file's tensors are exactly the model's, by name and shape.

    Raises:
        AdapterError: missing, extra, empty or misshapen ones, by name.
    """
    problems = []
    if missing := sorted(expected.keys() - found.keys()):
        problems.append(f"missing {_some(missing)}")
    if extra := sorted(found.keys() - expected.keys()):
        problems.append(f"unknown {_some(extra)}")
    wrong = [
        f"{name} {list(found[name].shape)} (expected {list(shape)})"
        for name in sorted(expected.keys() & found.keys())
        for shape in [getattr(expected[name], "ds_shape", expected[name].shape)]
        if found[name].shape != shape or found[name].is_floating_point() != expected[name].is_floating_point()
    ]
    if wrong:
        problems.append(f"misshapen {_some(wrong)}")
    if problems:
        raise AdapterError(f"{source}: {'; '.join(problems)}; nothing has been loaded")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def seal(directory: Path, versions: Mapping[str, str], home: Path) -> None:
    """Writes the weights' sha256, the format's version, those of the packages, and where the base is, into the config
    beside the weights.

    Args:
        directory: of the files.
        versions: of packages.
        home: the directory that they will be in, from which a base in a directory is found again.
    """
    path = directory / CONFIG
    values = json.loads(path.read_text())
    values["weights_sha256"] = sha256(directory / WEIGHTS)
    values["schema_version"] = SCHEMA_VERSION
    values["package_versions"] = dict(versions)
    values |= location_of(values.get("base_model_name_or_path"), home)
    path.write_text(sealed(values), encoding="utf-8")


def written_aside(directory: Path) -> AbstractContextManager[Path]:
    """A directory to write into; its files go to ``directory``, each in one rename, only if all went well.

    The config goes last, and names the weights by their hash: an adapter is either whole or refused.
    """
    return files_aside(directory, last=CONFIG)


@cache
def package_versions() -> Mapping[str, str]:
    """Versions of what computes an adapter; looked up once, since each checkpoint records them."""
    import importlib.metadata

    names = ("deepmlf_llm", "torch", "transformers", "peft", "bitsandbytes")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout, or an optional package
            continue
    return found
