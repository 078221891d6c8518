"""Whether features are those a model was trained on: their dimension, and how they were made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def feature_problems(trained: Mapping[str, Any], given: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What keeps features from being used, one phrase each; empty where they fit.

    Args:
        trained: modality -> facts of the training (``config.modalities``).
        given: modality -> facts of the features at hand (``store.modalities``): ``dim``, and ``features`` (how they
            were made), where known.
    """
    problems = []
    for name, facts in trained.items():
        if name not in given:
            problems.append(f"no {name!r}")
            continue
        dim, made = given[name].get("dim", facts.dim), given[name].get("features")
        if dim != facts.dim:
            problems.append(f"{name!r} has {dim} dimensions, expected {facts.dim}")
        if facts.features and made and made != facts.features:
            differing = sorted(key for key in {*made, *facts.features} if made.get(key) != facts.features.get(key))
            problems.append(f"{name!r} was made by another feature recipe (it differs in {', '.join(differing)})")
    return problems
