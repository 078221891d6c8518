"""Small sources for the tests of data: an MMSA tree, its pickle, a tokenizer."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

DIMS = {"audio": 3, "vision": 4}
PADDED = {"audio": 6, "vision": 5}
ROWS = {"train": 12, "valid": 4, "test": 5}
PADDING = 1e6
"""What the padding of the test source holds: a statistic that it enters cannot go unnoticed."""


def make_tree(seed: int = 0) -> dict[str, dict[str, Any]]:
    rng = np.random.default_rng(seed)
    tree: dict[str, dict[str, Any]] = {}
    for split, rows in ROWS.items():
        tree[split] = {
            "id": [f"{split}video$_${row}" for row in range(rows)],
            "raw_text": [f"I THINK IT'S NUMBER {row}" for row in range(rows)],
            "regression_labels": rng.uniform(-1, 1, rows).astype(np.float32) * 3,
            "annotations": ["Positive"] * rows,
        }
        for name, dim in DIMS.items():
            lengths = rng.integers(1, PADDED[name] + 1, rows)
            values = rng.normal(5, 3, (rows, PADDED[name], dim)).astype(np.float32)
            values[np.arange(PADDED[name])[None] >= lengths[:, None]] = PADDING
            tree[split][name] = values
            tree[split][f"{name}_lengths"] = lengths.tolist()
    return tree


@pytest.fixture(scope="session")
def _tree() -> dict[str, dict[str, Any]]:
    return make_tree()


@pytest.fixture
def tree(_tree: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What an MMSA pickle holds; the test may change it."""
    return copy.deepcopy(_tree)


@pytest.fixture
def write_pickle(tmp_path: Path) -> Callable[..., Path]:
    def write(content: Any, name: str = "source.pkl", protocol: int = 4) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=protocol))
        return path

    return write


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A word-level tokenizer whose padding token is its end token, as in many decoders."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<end>", "<start>", *"abcdefghij"]
    model = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<end>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<start>", eos_token="<end>", pad_token="<end>", unk_token="<end>"
    )
