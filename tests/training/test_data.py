from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepmlf_llm.backbones import load_tokenizer
from deepmlf_llm.config.sections import TextConfig
from deepmlf_llm.data.demo import embedded_dataset
from deepmlf_llm.errors import DataError
from deepmlf_llm.training.data import TrainingData, chosen_modalities, load_data, take_fraction, tokenised
from deepmlf_llm.training.settings import RunSettings

from .conftest import Utterances


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(embedded_dataset(tmp_path_factory.mktemp("data"), sizes=(20, 8, 8)))


def test_prepared_data_bring_their_facts(prepared: str) -> None:
    data = load_data(RunSettings.from_dict({"data": prepared}))
    assert [len(split) for split in data.splits().values()] == [20, 8, 8]  # type: ignore[arg-type]
    assert set(data.modalities) == {"audio", "vision"}
    assert data.dataset == "mosi"
    assert data.facts["splits"]["test"]["rows"] == 8
    assert len(data.fingerprint) == 3 * 16 + 2


@pytest.mark.parametrize(
    ("name", "message"), [("nowhere", "not there; make it with"), ("file.pkl", "a file; prepare it first")]
)
def test_data_that_are_not_prepared(tmp_path: Any, name: str, message: str) -> None:
    (tmp_path / "file.pkl").write_bytes(b"")
    with pytest.raises(DataError, match=message):
        load_data(RunSettings.from_dict({"data": str(tmp_path / name)}))


def test_modalities_are_chosen_by_name(toy_data: TrainingData) -> None:
    def chosen(wanted: list[str] | None) -> list[str]:
        return list(chosen_modalities(RunSettings.from_dict({"modalities": wanted}), toy_data))

    assert chosen(None) == ["audio", "vision"]
    assert chosen(["vision"]) == ["vision"]
    with pytest.raises(DataError, match=r"no 'visoin' \(did you mean 'vision'\?\); they have audio, vision"):
        chosen(["visoin"])


@given(st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_smaller_share_lies_within_a_larger(a: float, b: float) -> None:
    data = Utterances(30, seed=0)
    small, large = ({item["id"] for item in take_fraction(data, share)} for share in sorted((a, b)))  # type: ignore[attr-defined]
    assert small <= large
    assert len(small) == max(1, round(min(a, b) * 30))


def test_any_torch_data_set_is_tokenised() -> None:
    split = tokenised(Utterances(5, seed=0), "train", load_tokenizer("tiny-llama"), TextConfig(max_tokens=6))
    assert len(split) == 5
    assert max(split.lengths) <= 6
    assert split.truncated == 5
    assert isinstance(split[0]["audio"], np.ndarray)


@pytest.mark.parametrize("label", [None, float("nan"), float("inf")])
def test_labels_that_are_no_numbers_are_found_before_training(label: float | None) -> None:
    data = Utterances(5, seed=0)
    data.items[3]["label"] = label
    with pytest.raises(DataError, match="split 'valid': 1 labels are missing or not finite in 32 bits, of '3'"):
        tokenised(data, "valid", load_tokenizer("tiny-llama"), TextConfig())


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(DataError, match="split 'test' is empty"):
        tokenised(Utterances(0, seed=0), "test", load_tokenizer("tiny-llama"), TextConfig())
