"""Heads that learn from labels of one modality alone, where the data have them (CH-SIMS): text, audio, vision.

The text head takes the text's label. With labels of audio and of vision each gets a head of its own, which reads the
mean of that modality's encoded frames, before the modalities are joined; with one of the two the AV head takes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

COLUMNS = {"T": 0, "A": 1, "V": 2}
"""Where a label stands in ``unimodal_labels`` [b x 3]."""


@dataclass(frozen=True)
class Unimodal:
    """Labels of one modality alone, by term of the loss.

    Args:
        labels: term -> label [b], 0 where there is none.
        rated: term -> True where there is one, and something that its head can read [b].
    """

    labels: dict[str, Tensor]
    rated: dict[str, Tensor]

    def counts(self) -> dict[str, Tensor]:
        """Term -> over how many utterances it goes, scalars."""
        return {term: rated.sum() for term, rated in self.rated.items()}


def unimodal_of(terms: Mapping[str, str], labels: Tensor, heard: Mapping[str, Tensor]) -> Unimodal:
    """What a batch has for each term.

    Args:
        terms: term -> "T", "A" or "V" (:func:`~deepmlf_llm.config.labels.unimodal_terms`).
        labels: of text, audio and vision, NaN where a modality was not rated [b x 3].
        heard: modality -> True where an utterance has a frame of it [b].
    """
    columns = {term: labels[:, COLUMNS[suffix]] for term, suffix in terms.items()}
    rated = {term: ~column.isnan() for term, column in columns.items()}
    nothing = torch.zeros_like(labels[:, 0], dtype=torch.bool)
    anything = torch.stack([nothing, *heard.values()]).any(dim=0)
    for term in rated.keys() - {"text"}:
        rated[term] = rated[term] & heard.get(term, anything)
    return Unimodal({term: column.nan_to_num(0.0) for term, column in columns.items()}, rated)
