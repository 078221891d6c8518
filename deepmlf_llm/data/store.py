"""The data directory: the splits and the manifest, written aside and renamed, opened for training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepmlf_llm.data.manifest import FILE_NAME, Manifest, read_manifest
from deepmlf_llm.data.storage import read_split, write_splits
from deepmlf_llm.errors import DataError, suggest
from deepmlf_llm.files import directory_aside
from deepmlf_llm.tasks.registry import Task, task_of

if TYPE_CHECKING:
    from deepmlf_llm.data.dataset import PolarityDataset

FACTS = ("dim", "frame_rate", "features", "standardisation", "provenance")
"""What a model remembers of a modality; all but the provenance must be matched by a prediction."""


class DataStore:
    """A prepared data set.

    Attributes:
        directory: where it lies.
        manifest: what it says about itself.
        modalities: name -> dim, frame_rate, features, standardisation, provenance: what travels with a model.
    """

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest
        self.modalities: dict[str, dict[str, Any]] = {
            name: {fact: facts[fact] for fact in FACTS if fact in facts} for name, facts in manifest.modalities.items()
        }
        self._loaded: dict[str, PolarityDataset] = {}

    @property
    def task(self) -> Task:
        """What the labels mean.

        Raises:
            ConfigError: a data set that this version does not know.
        """
        return task_of(self.manifest.dataset, self.manifest.task)

    def split(self, name: str) -> PolarityDataset:
        """A split, loaded into memory at the first call, and compared with its hash.

        Raises:
            DataError: unknown split, damaged or exchanged files.
        """
        if name not in self.manifest.splits:
            known = ", ".join(self.manifest.splits)
            raise DataError(f"{self.directory}: no split {name!r}{suggest(name, self.manifest.splits)}; it has {known}")
        if name not in self._loaded:
            dims = {modality: facts["dim"] for modality, facts in self.modalities.items()}
            split = read_split(self.directory, name, dims, self.manifest.storage)
            expected = self.manifest.splits[name]["rows"]
            if len(split) != expected or any(len(ragged) != expected for ragged in split.features.values()):
                raise DataError(f"{self.directory}: split {name!r} is damaged: not the {expected} rows of its manifest")
            if split.fingerprint() != self.manifest.splits[name]["sha256"]:
                raise DataError(
                    f"{self.directory}: split {name!r} is not what was prepared: its sha256 differs from that in "
                    f"{FILE_NAME}; prepare the data again"
                )
            self._loaded[name] = split
        return self._loaded[name]

    def verify(self) -> None:
        """Loads every split, which compares it with its hash; raises DataError for one that was changed."""
        for name in self.manifest.splits:
            self.split(name)


def open_store(directory: Path | str) -> DataStore:
    """Opens a data directory.

    Raises:
        DataError: no data directory, or one of an unknown layout.
    """
    directory = Path(directory)
    return DataStore(directory, read_manifest(directory))


def check_output(directory: Path) -> Manifest | None:
    """What is already at ``directory``: None where it is free, else the manifest of the data set there.

    Raises:
        DataError: something is there that is not a data set; it is left alone.
    """
    if not directory.exists() and not directory.is_symlink():
        return None
    if not directory.is_dir():
        raise DataError(f"{directory}: is a file; give a new directory")
    if not any(directory.iterdir()):
        return None
    try:
        return read_manifest(directory)
    except DataError as error:
        raise DataError(f"{directory}: holds something else already, give a new directory ({error})") from None


def write_store(directory: Path, splits: Mapping[str, PolarityDataset], manifest: Manifest) -> None:
    """Writes a data directory; it appears complete or not at all.

    Raises:
        FileError: the place cannot be written to, or was taken meanwhile.
    """
    with directory_aside(directory, needed=sum(split.nbytes for split in splits.values())) as aside:
        write_splits(aside, splits, manifest.storage)
        manifest.write(aside)
