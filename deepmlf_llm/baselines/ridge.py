"""Ridge regression on the frozen LM's states: what a linear map reads off the text alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepmlf_llm.baselines.states import POOLINGS
from deepmlf_llm.extras import require

PENALTIES = np.logspace(1, 5, 9)


@dataclass(frozen=True)
class Ridge:
    """The regression that is best on validation.

    Attributes:
        pooling: index into :data:`~deepmlf_llm.baselines.states.POOLINGS`.
        layer: of the LM, 0-based.
        penalty: chosen among :data:`PENALTIES` by leave-one-out on the training split.
        mae: on validation.
        predictions: validation and test split -> polarity [n].
    """

    pooling: int
    layer: int
    penalty: float
    mae: float
    predictions: Mapping[str, NDArray[np.float32]]

    def facts(self) -> dict[str, object]:
        """For ``result.json``."""
        return {"pooling": POOLINGS[self.pooling], "layer": self.layer, "penalty": self.penalty}


def best_ridge(states: Mapping[str, NDArray[np.float32]], labels: Mapping[str, NDArray[np.float32]]) -> Ridge:
    """Fits every layer and pooling on the training split; validation MAE decides. Test labels are not looked at.

    Args:
        states: split -> [poolings x layers x n x d].
        labels: split -> polarity [n].

    Raises:
        MissingPackageError: scikit-learn is not installed.
    """
    linear = require("sklearn.linear_model", "ridge regression")
    make_pipeline = require("sklearn.pipeline", "ridge regression").make_pipeline
    scaler = require("sklearn.preprocessing", "ridge regression").StandardScaler
    best: Ridge | None = None
    for pooling in range(len(POOLINGS)):
        for layer in range(states["train"].shape[1]):
            ridge = make_pipeline(scaler(), linear.RidgeCV(PENALTIES))
            ridge.fit(states["train"][pooling, layer], labels["train"])
            predicted = {name: ridge.predict(states[name][pooling, layer]) for name in ("valid", "test")}
            mae = float(np.abs(predicted["valid"] - labels["valid"]).mean())
            if best is None or mae < best.mae:
                kept = {name: values.astype(np.float32) for name, values in predicted.items()}
                best = Ridge(pooling, layer, float(ridge[-1].alpha_), mae, kept)
    assert best is not None
    return best
