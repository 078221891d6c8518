"""What a data directory says about itself: ``manifest.json``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from deepmlf_llm.errors import ConfigError, DataError
from deepmlf_llm.files import sha256
from deepmlf_llm.reading import read_json
from deepmlf_llm.tasks.registry import task_of

SCHEMA_VERSION = 1
FILE_NAME = "manifest.json"
HASH_NAME = "manifest.sha256"  # as ``sha256sum -c`` reads it; data of the first version have none
_SPLIT_FACTS = {"rows": int, "sha256": str}
_MODALITY_FACTS = {"dim": int, "features": dict, "standardisation": dict}


def package_version() -> str:
    """Version of this package, ``"unknown"`` where it runs without being installed."""
    try:
        return version("deepmlf_llm")
    except PackageNotFoundError:
        return "unknown"


@dataclass
class Manifest:
    """Facts about a prepared data set; reads like a dictionary too (``manifest["dataset"]``).

    Attributes:
        dataset: whose label and metric rules hold: "mosi", "sims", .., or the name of a task of one's own.
        source: kind ("mmsa", "npy_folder", "embedded"), name and sha256 of what was read; the embedded set adds a
            description of its texts and of its synthetic parts.
        settings: what the preparation was asked for: case, clip, modalities, frame_rates (Hz), standardised_by
            ("video"; not there: "corpus").
        splits: split -> rows, sha256 of its content, labels (min, max, mean, negative, neutral, positive; or how many
            there are of each class), words (median, max, empty).
        modalities: name -> dim, frame_rate (Hz, None = unknown), features (what was computed: encoder, layer, ...; kind
            "precomputed" where that is unknown), provenance (source, sha256: where they came from, which is not part of
            what they are), standardisation (mean, std, clip, constant), frames (median, max, total), absent (split ->
            rows), cleaned (split -> counts).
        labels: range of the data set's rule, and min and max found; of classes nothing.
        text: case, words (median, max, empty) over all splits.
        notes: what was odd, one sentence each.
        storage: "arrow" or "numpy".
        schema: version of this layout.
        package: version of deepmlf_llm that wrote it.
        task: rules of a task of one's own, or classes with their weights (:mod:`deepmlf_llm.tasks.registry`); None, and
            not in the file, where the name of the data set says all.
    """

    dataset: str
    source: dict[str, Any]
    settings: dict[str, Any]
    splits: dict[str, dict[str, Any]]
    modalities: dict[str, dict[str, Any]]
    labels: dict[str, Any]
    text: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    storage: str = "arrow"
    schema: int = SCHEMA_VERSION
    package: str = field(default_factory=package_version)
    task: dict[str, Any] | None = None

    def __getitem__(self, name: str) -> Any:
        if name not in self.keys():
            raise KeyError(name)
        return getattr(self, name)

    def keys(self) -> list[str]:
        return list(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "task" or value is not None}

    def same_preparation(self, other: Manifest) -> bool:
        """Whether the other one prepared the same source with the same settings."""
        return all(
            getattr(self, name) == getattr(other, name)
            for name in ("dataset", "task", "source", "settings", "storage", "schema")
        )

    def write(self, directory: Path) -> None:
        """Writes ``manifest.json`` into ``directory``, and its hash beside it."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        (directory / FILE_NAME).write_text(text + "\n", encoding="utf-8")
        (directory / HASH_NAME).write_text(f"{sha256(directory / FILE_NAME)}  {FILE_NAME}\n", encoding="ascii")


def read_manifest(directory: Path) -> Manifest:
    """Reads ``manifest.json``.

    Raises:
        DataError: not there, damaged, or of a layout that this version does not know.
    """
    path = Path(directory) / FILE_NAME
    if not path.is_file():
        raise DataError(f"{directory}: no data directory (no {FILE_NAME}); make one with `deepmlf prepare`")
    try:
        content = read_json(path)
    except ValueError as error:
        raise DataError(f"{path}: damaged ({error})") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA_VERSION:
        found = content.get("schema") if isinstance(content, dict) else None
        raise DataError(f"{path}: layout version {found!r}, expected {SCHEMA_VERSION}: prepare the data again")
    odd = ", ".join(sorted({item.name for item in fields(Manifest)} ^ {"task", *content}))
    if odd:
        raise DataError(f"{path}: damaged (missing or unknown: {odd})")
    _check_hash(path)
    if wrong := _misshapen(content):
        raise DataError(f"{path}: damaged ({wrong})")
    manifest = Manifest(**content)
    if manifest.task is not None:
        try:
            task_of(manifest.dataset, manifest.task)
        except ConfigError as error:
            raise DataError(f"{path}: damaged ({error})") from None
    return manifest


def _check_hash(path: Path) -> None:
    """The manifest is the one that was written, where its hash was written too."""
    beside = path.with_name(HASH_NAME)
    if not beside.is_file():
        return
    with beside.open("rb") as file:
        noted = file.read(64).decode("ascii", errors="replace")
    if noted != sha256(path):
        raise DataError(
            f"{path}: damaged or edited: its sha256 is not the one in {HASH_NAME}; prepare the data again, or delete "
            f"{HASH_NAME} if it was changed on purpose"
        )


def _misshapen(content: dict[str, Any]) -> str:
    """Names the first fact that is not of its kind; empty where all are."""
    kinds = {"dataset": str, "source": dict, "settings": dict, "splits": dict, "modalities": dict, "labels": dict}
    kinds |= {"text": dict, "notes": list, "storage": str, "package": str}
    for name, kind in kinds.items():
        if not isinstance(content[name], kind):
            return f"{name} is a {type(content[name]).__name__}"
    for section, needed in (("splits", _SPLIT_FACTS), ("modalities", _MODALITY_FACTS)):
        for name, facts in content[section].items():
            for fact, needed_kind in needed.items():
                if not isinstance(facts, dict) or not isinstance(facts.get(fact), needed_kind):
                    return f"{section}: {fact} of {name} is missing or not a {needed_kind.__name__}"
    return ""
