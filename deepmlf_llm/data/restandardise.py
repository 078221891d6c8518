"""Features of prepared data for a model that was trained on other data: from one standardisation to the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepmlf_llm.data.clean import standardise


@dataclass(frozen=True)
class StandardisationChange:
    """From features that are standardised in one way to the same features standardised in another.

    Args:
        name: of the modality.
        given: standardisation that they have; None: raw.
        wanted: the one they shall have; None: raw.
    """

    name: str
    given: Mapping[str, Any] | None
    wanted: Mapping[str, Any] | None

    @property
    def note(self) -> str:
        """What the user should know; empty where nothing changes."""
        if self.given == self.wanted:
            return ""
        return (
            f"{self.name!r} was standardised by these data's own training split and is now by the adapter's; what that "
            "clipped or left out as constant is lost"
        )

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """``frames`` [t x d] in the other standardisation, float32."""
        if self.given == self.wanted or not len(frames):
            return frames
        raw = frames.astype(np.float64)
        if self.given is not None:
            raw = raw * np.asarray(self.given["std"]) + np.asarray(self.given["mean"])
        return raw.astype(np.float32) if self.wanted is None else standardise(raw, self.wanted)[0]


def standardisation_changes(given: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, StandardisationChange]:
    """What is to be done to each modality of prepared data.

    Args:
        given: modality -> its facts in the data (``store.modalities``).
        trained: modality -> what the model remembers of it (``config.modalities``).
    """
    return {
        name: StandardisationChange(name, given[name].get("standardisation"), facts.standardisation)
        for name, facts in trained.items()
    }
