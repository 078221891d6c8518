"""How well each frozen base model of a study predicts the transcripts that its cells read: what is stored of it.

``language_models.json``: a list of entries with ``base``, ``layers``, ``data`` (of the training split, its sha256),
``parameters`` (of the LM; an output layer that repeats the embedding counts once), ``layer_parameters`` (without
embedding and output layer), ``utterances``, ``tokens``, ``words``, ``bytes`` (of the transcripts, UTF-8) and ``nats``
(the sum of the surprise of their tokens) and ``start`` (the token before each transcript). Measured by
:mod:`~deepmlf_llm.study.lm_measuring`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from deepmlf_llm.files import write_aside
from deepmlf_llm.reading import read_json
from deepmlf_llm.study.configurations import BACKBONE
from deepmlf_llm.study.directory import StudyDirectory

FILE = "language_models.json"


def read_measured(directory: StudyDirectory) -> list[dict[str, Any]]:
    """What is stored; nothing where there is no such file, or a damaged one: it is measured again."""
    try:
        found = read_json(directory.path / FILE)
    except (OSError, ValueError):
        return []
    keys = (*BACKBONE, "parameters", "layer_parameters", "nats", "tokens", "words", "bytes", "utterances")
    whole = isinstance(found, list) and all(isinstance(e, dict) and all(key in e for key in keys) for e in found)
    return found if whole else []


def write_measured(directory: StudyDirectory, entries: Sequence[Mapping[str, Any]]) -> None:
    """All that is known, in the place of what is stored."""
    write_aside(directory.path / FILE, json.dumps(entries, indent=1) + "\n")


def what_was_read(entry: Mapping[str, Any]) -> list[Any]:
    """By which base model which transcripts: entries that agree in this say the same."""
    return [entry.get(name) for name in (*BACKBONE, "data")]


def bits_per_byte(entry: Mapping[str, Any]) -> float:
    """Comparable between tokenizers."""
    return float(entry["nats"]) / math.log(2) / max(1, entry["bytes"])


def perplexity(entry: Mapping[str, Any], unit: str) -> float:
    """Per ``"tokens"`` or ``"words"``; infinite where it is beyond all numbers."""
    rate = entry["nats"] / max(1, entry[unit])
    return math.exp(rate) if rate < 700 else math.inf
