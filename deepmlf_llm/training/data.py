"""What a run learns from: three splits of any torch data set, and what they say about themselves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from deepmlf_llm.config.sections import TextConfig
from deepmlf_llm.data.corruption import Corrupted, Corruption, check_modalities, read_levels
from deepmlf_llm.data.unimodal import WithUnimodal
from deepmlf_llm.errors import DataError, Problems, suggest
from deepmlf_llm.tasks.classification import ClassificationTask, check_class_labels
from deepmlf_llm.tasks.registry import TASKS, Task, task_of
from deepmlf_llm.training.finite import FEW, name_of, some
from deepmlf_llm.training.run_keys import EMBEDDED, TEXT_ALONE
from deepmlf_llm.training.settings import RunSettings

SPLITS = ("train", "valid", "test")


@dataclass
class TrainingData:
    """Three splits and their facts.

    Args:
        train, valid, test: map-style data sets whose items are ``{"text", "label", "<modality>": float32 [t x d]}``.
        modalities: name -> dim, and optionally frame_rate, features, standardisation (they travel with the adapter).
        dataset: label and metric rule: "mosi", "sims", .., or the name of a task of one's own.
        case: what was done to the transcripts' case: "lower", "sentence" or "keep".
        facts: what a result says about the data.
        fingerprint: changes when the data do.
        task: rules of a task of one's own, or classes, as the manifest has them; None: the data set's name says all.
    """

    train: Dataset[Any]
    valid: Dataset[Any]
    test: Dataset[Any]
    modalities: Mapping[str, Mapping[str, Any]]
    dataset: str = "mosi"
    case: str = "keep"
    facts: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    task: Mapping[str, Any] | None = None

    @property
    def rules(self) -> Task:
        """What the labels mean.

        Raises:
            ConfigError: no such data set, or rules that are none.
        """
        return task_of(self.dataset, self.task)

    def splits(self) -> dict[str, Dataset[Any]]:
        return {name: getattr(self, name) for name in SPLITS}


def load_data(settings: RunSettings) -> TrainingData:
    """Opens the data directory that the settings name; the embedded set is made once and kept in the user's cache.

    Raises:
        DataError: missing, damaged, not prepared, or without one of the splits.
    """
    from deepmlf_llm.data.store import open_store

    if settings.data == EMBEDDED:
        from deepmlf_llm.data.demo import embedded_dataset

        directory = embedded_dataset()
    else:
        directory = Path(settings.data).expanduser()
        if not directory.exists():
            raise DataError(f"data={settings.data}: not there; make it with `deepmlf prepare`")
        if directory.is_file():
            raise DataError(
                f"data={settings.data}: a file; prepare it first: deepmlf prepare --source "
                f"{settings.data} --dataset {'|'.join(TASKS)} --out DIR"
            )
    store = open_store(directory)
    manifest = store.manifest
    missing = [name for name in SPLITS if name not in manifest.splits]
    if missing:
        raise DataError(f"data={settings.data}: no split {', '.join(missing)}")
    facts = {
        "name": directory.name,
        "dataset": manifest.dataset,
        "source": manifest.source,
        "splits": {name: {k: manifest.splits[name].get(k) for k in ("rows", "sha256")} for name in SPLITS},
        "modalities": {name: {"dim": m["dim"], "frame_rate": m["frame_rate"]} for name, m in store.modalities.items()},
        "text": manifest.text,
        **({"task": manifest.task} if manifest.task else {}),
    }
    return TrainingData(
        **{name: store.split(name) for name in SPLITS},
        modalities=store.modalities,
        dataset=manifest.dataset,
        case=manifest.text["case"],
        facts=facts,
        fingerprint="-".join([str(manifest.splits[name]["sha256"])[:16] for name in SPLITS] + _of_task(manifest.task)),
        task=manifest.task,
    )


def _of_task(task: Mapping[str, Any] | None) -> list[str]:
    """What a fingerprint of data has of rules that no name says: other classes or weights make another run."""
    return [hashlib.sha256(json.dumps(task, sort_keys=True).encode()).hexdigest()[:16]] if task else []


def chosen_modalities(settings: RunSettings, data: TrainingData) -> dict[str, dict[str, Any]]:
    """The modalities that a run uses, in the data's order; none where it reads text alone.

    Raises:
        DataError: the data have no such modality.
    """
    if settings.modalities == TEXT_ALONE:
        return {}
    wanted = list(data.modalities) if settings.modalities is None else settings.modalities
    problems = Problems(DataError, f"modalities={wanted}")
    known = ", ".join(data.modalities) or "none"
    for name in wanted:
        near = suggest(name, data.modalities)
        problems.check(name in data.modalities, f"the data have no {name!r}{near}; they have {known}")
    problems.raise_if_any()
    return {name: dict(facts) for name, facts in data.modalities.items() if name in wanted}


def training_split(settings: RunSettings, data: TrainingData) -> Dataset[Any]:
    """What a run trains on: its share of the training split, with modalities taken away where it says so.

    Raises:
        ConfigError: ``missing`` names a modality that the run does not have.
    """
    split = take_fraction(data.train, settings.data_fraction)
    if not settings.missing:
        return split
    shares = {name: levels[0] for name, levels in read_levels(settings.missing, "missing").items()}
    corruption = Corruption(shares, seed=settings.mask_seed)
    check_modalities(corruption, chosen_modalities(settings, data), f"missing={','.join(settings.missing)}")
    return Corrupted(split, corruption)


def take_fraction(dataset: Dataset[Any], fraction: float) -> Dataset[Any]:
    """A share of a data set: the same utterances for every seed, and a smaller share lies within a larger one."""
    if fraction >= 1:
        return dataset
    size = len(dataset)  # type: ignore[arg-type]
    chosen = np.random.default_rng(0).permutation(size)[: max(1, round(fraction * size))]
    indices = sorted(chosen.tolist())
    if hasattr(dataset, "select"):
        selected: Dataset[Any] = dataset.select(indices)
        return selected
    from torch.utils.data import Subset

    return Subset(dataset, indices)


class _WithTexts(Dataset[dict[str, Any]]):
    """Any map-style data set, with the lists of its transcripts and ids."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset
        items = (dataset[i] for i in range(len(dataset)))  # type: ignore[arg-type]
        both = [(item["text"], row if item.get("id") is None else item["id"]) for row, item in enumerate(items)]
        self.texts = [text for text, _ in both]
        self.ids = [str(identity) for _, identity in both]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item: dict[str, Any] = self.dataset[index]
        return item


def tokenised(dataset: Any, name: str, tokenizer: Any, text: TextConfig, task: Task | None = None) -> Any:
    """A split with token ids, its labels looked at.

    Raises:
        DataError: as :func:`check_labels`.
    """
    from deepmlf_llm.data.collate import tokenise

    check_labels(dataset, name, task)
    return tokenise(
        dataset if hasattr(dataset, "texts") else _WithTexts(dataset), tokenizer, text.max_tokens, text.template
    )


def check_labels(dataset: Any, name: str, task: Task | None = None) -> None:
    """Whether a split can be learnt from.

    Raises:
        DataError: the split is empty, or a label is missing, not finite, or none of the task's classes.
    """
    size = len(dataset)
    if size == 0:
        raise DataError(f"split {name!r} is empty")
    values = getattr(dataset, "labels", None)
    labels = [dataset[i].get("label") for i in range(size)] if values is None else list(values)
    with np.errstate(over="ignore"):
        broken = [i for i, label in enumerate(labels) if label is None or not np.isfinite(np.float32(label)).all()]
    if broken:
        raise DataError(
            f"split {name!r}: {len(broken)} labels are missing or not finite in 32 bits, of "
            f"{some(name_of(dataset, i) for i in broken[: FEW + 1])}"
        )
    if isinstance(task, ClassificationTask):
        found = np.asarray(labels, dtype=np.float32)
        if found.shape != ((size, task.num_outputs) if task.several else (size,)):
            raise DataError(f"split {name!r}: labels of shape {found.shape}: expected {task.describe()}")
        check_class_labels(found, task, f"split {name!r}")


def with_unimodal(dataset: Any, config: Any) -> Any:
    """A split whose items also hold labels of one modality alone, where the heads of ``config`` learn from them."""
    return WithUnimodal(dataset) if config.unimodal_targets else dataset


def as_read(dataset: Any, name: str, tokenizer: Any, config: Any) -> Any:
    """A split as a model with these settings reads it; see :func:`tokenised`.

    Raises:
        DataError: as there.
    """
    return tokenised(with_unimodal(dataset, config), name, tokenizer, config.text, task_of(config.dataset, config.task))
