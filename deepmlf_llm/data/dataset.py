"""Utterances in memory, as a plain torch data set; it does not depend on how they are stored."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from deepmlf_llm.data.ragged import Ragged


class PolarityDataset(Dataset[dict[str, Any]]):
    """One split, ready for training: a map from index to one utterance.

    ``dataset[i]`` is ``{"id": str, "text": str, "label": float, "<modality>": float32 [t x d], ...}``; t = 0 where the
    modality is absent. The label is a polarity, the index of a class, or with several labels 0 and 1 of each [c].

    Args:
        ids: name of each utterance [N].
        texts: transcripts, their case normalised [N].
        labels: polarity, or index of the class [N]; with several labels 0 and 1 [N x c].
        features: modality -> N sequences, standardised.
        unimodal: "T", "A", "V" -> polarity of that modality alone [N], NaN where not rated; not part of the items.
    """

    def __init__(
        self,
        ids: Sequence[str],
        texts: Sequence[str],
        labels: np.ndarray,
        features: Mapping[str, Ragged],
        unimodal: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.ids = list(ids)
        self.texts = list(texts)
        self.labels = np.asarray(labels, dtype=np.float32)
        self.features = dict(features)
        self.unimodal = dict(unimodal or {})

    @property
    def modalities(self) -> dict[str, int]:
        """Name and dimension of each modality."""
        return {name: ragged.dim for name, ragged in self.features.items()}

    @property
    def nbytes(self) -> int:
        """Of labels, texts and features."""
        texts = sum(len(text) for text in (*self.ids, *self.texts))
        return texts + self.labels.nbytes + sum(r.values.nbytes + r.offsets.nbytes for r in self.features.values())

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        label = self.labels[index]
        item: dict[str, Any] = {"id": self.ids[index], "text": self.texts[index]}
        item["label"] = label if label.ndim else float(label)
        for name, ragged in self.features.items():
            item[name] = ragged[index]
        return item

    def select(self, indices: Sequence[int]) -> PolarityDataset:
        """The utterances at ``indices``, in that order, as a data set of their own."""
        return PolarityDataset(
            [self.ids[index] for index in indices],
            [self.texts[index] for index in indices],
            self.labels[list(indices)],
            {name: ragged.select(indices) for name, ragged in self.features.items()},
            {suffix: values[list(indices)] for suffix, values in self.unimodal.items()},
        )

    def fingerprint(self) -> str:
        """sha256 of the whole content, the same however it is stored."""
        digest = hashlib.sha256()
        for strings in (self.ids, self.texts):
            digest.update("\0".join(strings).encode())
        digest.update(self.labels.tobytes())
        for name, ragged in sorted(self.features.items()):
            digest.update(f"{name} {ragged.dim}".encode())
            digest.update(ragged.offsets.astype(np.int64).tobytes())
            digest.update(np.ascontiguousarray(ragged.values, dtype=np.float32).data)
        for suffix, values in sorted(self.unimodal.items()):
            digest.update(suffix.encode())
            digest.update(np.asarray(values, dtype=np.float32).tobytes())
        return digest.hexdigest()
