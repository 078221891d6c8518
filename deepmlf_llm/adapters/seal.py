"""The seal of an adapter: sha256 of its weights and of its settings, in the file of the settings."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.files import sha256

_LOCATION = ("base_model_name_or_path", "base_model_relative", "revision")


def settings_digest(values: dict[str, Any]) -> str:
    """sha256 of an adapter's settings as JSON, without where its base is found, which may be edited by hand."""
    sealed_values = {key: value for key, value in values.items() if key not in (*_LOCATION, "settings_sha256")}
    return hashlib.sha256(json.dumps(sealed_values, sort_keys=True).encode()).hexdigest()


def sealed(values: dict[str, Any]) -> str:
    """The text of an adapter's config file, its digest included."""
    return json.dumps({**values, "settings_sha256": settings_digest(values)}, indent=2, sort_keys=True) + "\n"


def seal_saved(directory: Path) -> None:
    """Seals what PEFT has written: the hash of the weights, where there are some, and that of the settings."""
    path, weights = directory / CONFIG_NAME, directory / SAFETENSORS_WEIGHTS_NAME
    values = json.loads(path.read_text(encoding="utf-8"))
    values["weights_sha256"] = sha256(weights) if weights.is_file() else None
    path.write_text(sealed(values), encoding="utf-8")


DeepMLFConfig.after_saving = seal_saved
