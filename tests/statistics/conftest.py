"""Predictions made up so that the truth is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from deepmlf_llm.statistics.predictions import Predictions


@pytest.fixture
def made() -> Callable[..., Predictions]:
    """Predictions of n utterances whose errors have the given deviation."""

    def make(seed: int = 0, error: float = 0.5, n: int = 80, split: str = "test") -> Predictions:
        labels = np.round(np.random.default_rng(99).uniform(-3, 3, n), 1).astype(np.float32)
        random = np.random.default_rng(seed)
        heads = {
            name: (labels + random.normal(size=n) * deviation).astype(np.float32)
            for name, deviation in (("polarity", error), ("text_polarity", 1.5))
        }
        return Predictions("mosi", split, [f"clip {i}" for i in range(n)], labels, heads)

    return make
