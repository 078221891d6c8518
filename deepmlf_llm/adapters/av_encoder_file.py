"""An AV encoder that was trained alone, in a directory of its own: ``av_encoder.safetensors``, ``av_encoder.json``.

Sealed like an adapter: the settings name the weights by their hash and carry one of themselves; see
docs/adapter-format.md. The tensors have the keys of :class:`~deepmlf_llm.modules.AVEncoder`; the head that it was
trained under is not among them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from deepmlf_llm.adapters import files
from deepmlf_llm.adapters.seal import sealed
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.config.rules import brief
from deepmlf_llm.data.facts import feature_problems
from deepmlf_llm.errors import AdapterError, ConfigError, Problems
from deepmlf_llm.files import files_aside, sha256

WEIGHTS, SETTINGS, KIND = "av_encoder.safetensors", "av_encoder.json", "deepmlf_av_encoder"
VERSION = 1
OF_TRAINING_ONLY = ("dropout", "input_dropout")
"""Settings of an AV encoder that may differ where it is loaded: they say how it is trained, not what it computes."""
_METHOD = ("av_encoder", "modalities")  # not the task: the head that knew it is not kept
_KEYS = {"kind", "schema_version", *_METHOD, "readout", "package_versions", "weights_sha256", "settings_sha256"}


@dataclass
class AVEncoderFile:
    """An AV encoder as it was saved.

    Attributes:
        source: for messages.
        config: its settings (``av_encoder``, ``modalities``); the rest of it says nothing.
        readout: what its head read: ``"mean"`` or ``"last"``.
        digest: sha256 of its weights.
        tensors: by the keys of :class:`~deepmlf_llm.modules.AVEncoder`.
    """

    source: str
    config: DeepMLFConfig
    readout: str
    digest: str
    tensors: dict[str, Tensor]

    def check(self, config: DeepMLFConfig) -> list[str]:
        """Whether it is what a model with these settings would build and be fed with.

        Args:
            config: of that model, its modalities included.

        Returns:
            What differs without harm, a sentence each.

        Raises:
            AdapterError: other settings, modalities, features or standardisation; all of them by name, both values.
        """
        problems, notes = Problems(AdapterError, self.source), []
        for field in dataclasses.fields(self.config.av_encoder):
            mine, theirs = (getattr(c.av_encoder, field.name) for c in (self.config, config))
            if mine != theirs:
                difference = f"av_encoder.{field.name}={mine!r} there, {theirs!r} here"
                notes += [difference] if field.name in OF_TRAINING_ONLY else []
                problems.check(field.name in OF_TRAINING_ONLY, difference)
        given = {name: dataclasses.asdict(facts) for name, facts in config.modalities.items()}
        problems.messages += [f"the data: {problem}" for problem in feature_problems(self.config.modalities, given)]
        for name in config.modalities.keys() - self.config.modalities.keys():
            known = ", ".join(self.config.modalities)
            problems.check(False, f"it has no {name!r}, it reads {known}; choose with modalities=...")
        for name in config.modalities.keys() & self.config.modalities.keys():
            mine, theirs = (c.modalities[name].standardisation for c in (self.config, config))
            problems.check(
                mine == theirs, f"{name!r} was standardised by other numbers; prepare these data --like those"
            )
        problems.raise_if_any()
        return notes

    def check_tensors(self, expected: Mapping[str, Tensor]) -> None:
        """The tensors are exactly those of an encoder, by name and shape.

        Raises:
            AdapterError: missing, unknown or misshapen ones.
        """
        files.check_tensors(self.tensors, expected, self.source)


def write_av_encoder(directory: Path, tensors: Mapping[str, Tensor], config: DeepMLFConfig, readout: str) -> None:
    """Writes the two files aside, reads them again, then renames them; the settings go last.

    Args:
        directory: gets them.
        tensors: of the encoder.
        config: settings that it was built from.
        readout: what its head read.

    Raises:
        AdapterError: what was written is not whole.
    """
    from safetensors.torch import save_file

    with files_aside(directory, last=SETTINGS) as aside:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, aside / WEIGHTS)
        method = {name: config.to_dict()[name] for name in _METHOD}
        values = {
            "kind": KIND,
            "schema_version": VERSION,
            **method,
            "readout": readout,
            "package_versions": files.package_versions(),
            "weights_sha256": sha256(aside / WEIGHTS),
        }
        (aside / SETTINGS).write_text(sealed(values), encoding="utf-8")
        read_av_encoder(aside).check_tensors(tensors)


def read_av_encoder(directory: str | Path) -> AVEncoderFile:
    """Reads and checks both files.

    Raises:
        AdapterError: not there, damaged, changed, of a newer version, or with settings that are out of range.
    """
    path = Path(directory) / SETTINGS
    if not path.is_file():
        raise AdapterError(
            f"{directory}: no {SETTINGS}: expected the directory of an AV encoder that was trained alone"
        )
    values = _settings(path)
    weights = path.with_name(WEIGHTS)
    if not weights.is_file():
        raise AdapterError(f"{directory}: no {WEIGHTS}: expected it beside {SETTINGS}")
    try:
        config = DeepMLFConfig.from_dict({name: values[name] for name in _METHOD})
    except ConfigError as error:
        raise AdapterError(f"{path}: {error}") from error
    digest = values["weights_sha256"]
    return AVEncoderFile(
        str(directory), config, values["readout"], digest, files.read_tensors(weights, digest, SETTINGS)
    )


def _settings(path: Path) -> dict[str, Any]:
    values, digest = files.parsed(path)
    if not isinstance(values, dict) or values.get("kind") != KIND:
        kind = values.get("kind") if isinstance(values, dict) else type(values).__name__
        raise AdapterError(f"{path}: of kind {brief(kind)}, expected {KIND!r}")
    version = values.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= VERSION:
        raise AdapterError(f"{path}: schema_version={brief(version)}; this package reads up to {VERSION}")
    if missing := sorted(_KEYS - values.keys()):
        raise AdapterError(f"{path}: damaged or not saved whole: no {', '.join(missing)}")
    if values["settings_sha256"] != digest or values.keys() != _KEYS:
        raise AdapterError(f"{path}: damaged or edited: its settings are not those of settings_sha256")
    return values
