"""What a reader is asked for, and the names under which the field writes splits and modalities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from deepmlf_llm.data.corpus import SPLITS, check_modality_names
from deepmlf_llm.data.names import did_you_mean
from deepmlf_llm.errors import DataError
from deepmlf_llm.tasks.registry import Task, task_of

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
}
"""How files call a split -> how it is called here."""

MODALITY_NAMES = {
    "audio": "audio",
    "acoustic": "audio",
    "vision": "vision",
    "visual": "vision",
    "video": "vision",
}
"""Usual names of a modality, in any case -> the name it is read under, unless that is taken or another is asked for."""

TEXT_FEATURES = ("text", "text_bert", "bert", "glove", "glove_vectors", "text_features")
"""Features of the text, which a language model does not need: it reads the transcript."""


@dataclass(frozen=True)
class Reading:
    """How a source shall be read.

    Attributes:
        dataset: whose labels these are: a shipped data set, or a task.
        modalities: which to read, in this order; None: all there are; empty: the text alone.
        rename: name in the source -> name of the modality.
        labelled: whether every utterance must have a label; False: one that has none gets NaN.
    """

    dataset: str | Task
    modalities: Sequence[str] | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    labelled: bool = True

    @property
    def task(self) -> Task:
        """What the labels mean."""
        return task_of(self.dataset)

    def keys(
        self, present: Iterable[str], where: str, notes: list[str], usual: Mapping[str, str] = MODALITY_NAMES
    ) -> dict[str, str]:
        """Which part of the source holds which modality: name -> key in the source, in the order to read.

        Args:
            present: keys of the source that hold features.
            where: for messages.
            notes: takes a sentence for each key that is read under another name.
            usual: other names of a modality -> the name it is read under.

        Raises:
            DataError: a modality or a key to rename is not there, two keys for one name, an impossible name, or none.
        """
        present = list(present)
        listed = ", ".join(present) or "none"
        for key in self.rename:
            if key not in present:
                raise DataError(f"{where}: no {key!r} to rename{did_you_mean(key, present)}; there are {listed}")
        wanted = None if self.modalities is None else list(dict.fromkeys(self.modalities))
        kept = {*present} - {*self.rename} | {*self.rename.values()}
        found: dict[str, str] = {}
        for key in present:
            other = usual.get(key.lower(), key)
            name = self.rename.get(key) or (key if other in kept or key in (wanted or ()) else other)
            if name in found:
                raise DataError(f"{where}: {found[name]!r} and {key!r} would both be {name}; rename one of them")
            found[name] = key
        for name in wanted or ():
            if name not in found:
                raise DataError(f"{where}: no modality {name!r}{did_you_mean(name, found)}; there are {listed}")
        names = list(found) if wanted is None else wanted
        if not names and wanted is None:
            raise DataError(f"{where}: no modality found, expected at least one such as audio or vision")
        check_modality_names(names)
        notes += [f"{found[name]!r} was read as {name}" for name in names if found[name] != name]
        return {name: found[name] for name in names}


def split_keys(keys: Iterable[object], where: str) -> dict[str, str]:
    """The keys that name a split: split -> key, in the order train, valid, test.

    Raises:
        DataError: two keys for one split.
    """
    found: dict[str, str] = {}
    for key in keys:
        split = split_name(key)
        if split is None:
            continue
        if split in found:
            raise DataError(f"{where}: both {found[split]!r} and {key!r} would be the split {split}; remove one")
        found[split] = str(key)
    return {split: found[split] for split in SPLITS if split in found}


def split_name(name: object) -> str | None:
    """The split that ``name`` means, None for any other word."""
    return SPLIT_NAMES.get(name.strip().lower()) if isinstance(name, str) else None
