"""Sequences of different lengths in one array: one allocation, one hash, one file column for a whole split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """N sequences of d-dimensional frames, end to end.

    Attributes:
        values: all frames [sum of t x d], float32.
        offsets: where each sequence begins, and the end of the last [N + 1], int64.
    """

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_sequences(cls, sequences: Sequence[np.ndarray], dim: int) -> Ragged:
        """Copies N arrays [t x d] of any number type; what float32 cannot hold becomes infinite."""
        offsets = np.zeros(len(sequences) + 1, dtype=np.int64)
        np.cumsum([len(frames) for frames in sequences], out=offsets[1:])
        values = np.empty((int(offsets[-1]), dim), dtype=np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for start, frames in zip(offsets, sequences, strict=False):
                if len(frames):
                    values[start : start + len(frames)] = frames
        return cls(values, offsets)

    @property
    def lengths(self) -> np.ndarray:
        """Frames of each sequence [N]; 0 = absent."""
        return np.diff(self.offsets)

    @property
    def dim(self) -> int:
        """d."""
        return int(self.values.shape[1])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        """Sequence ``index`` [t x d], a view."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    def select(self, indices: Sequence[int]) -> Ragged:
        """The sequences at ``indices``, copied."""
        return Ragged.from_sequences([self[index] for index in indices], self.dim)
