from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainingArguments

from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.errors import ConfigError
from deepmlf_llm.training.keys import Key, all_keys, refuse, sections
from deepmlf_llm.training.trainer_keys import TRAINER_DEFAULTS


def key(hint: Any) -> Key:
    return Key("x", "run", hint, None, "")


def test_every_key_has_one_owner_and_stands_for_a_real_field() -> None:
    trainer = {f.name for f in dataclasses.fields(TrainingArguments)}
    method = {f.name for f in dataclasses.fields(DeepMLFConfig)}
    for name, entry in all_keys().items():
        if entry.owner == "trainer":
            assert name in trainer
        elif entry.owner == "method":
            assert name.partition(".")[0] in method or name == "lora_r"
    assert set(TRAINER_DEFAULTS) <= set(all_keys())
    assert sections() == {"av_encoder", "mixing_head", "objective", "seqaug", "text"}


def test_what_the_data_or_the_recipe_decide_is_no_key() -> None:
    assert not {"dataset", "text.case", "label_names", "remove_unused_columns", "resume_from_checkpoint"} & set(
        all_keys()
    )
    assert "the same command again resumes" in refuse("resume_from_checkpoint")


@pytest.mark.parametrize(
    ("hint", "given_value", "expected"),
    [
        (int, 3, 3),
        (float, 3, 3.0),
        (float, "1e-4", 1e-4),
        (bool, True, True),
        (str | None, None, None),
        (str | None, "none", "none"),
        (list[str] | None, "a, b", ["a", "b"]),
        (list[str] | str, "word", "word"),
        (dict[str, Any] | str | None, {"a": 1}, {"a": 1}),
        (Any, {"a": 1}, {"a": 1}),
    ],
)
def test_coercion(hint: Any, given_value: Any, expected: Any) -> None:
    assert key(hint).coerce(given_value) == expected


@pytest.mark.parametrize(
    ("hint", "value"), [(int, 1.5), (int, True), (int, None), (float, "nan"), (float, True), (bool, 1), (dict, "a")]
)
def test_refusals_say_what_was_expected(hint: Any, value: Any) -> None:
    with pytest.raises(ConfigError, match=r"x=.*: expected"):
        key(hint).coerce(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_survive_being_written_as_text(value: float) -> None:
    assert key(float).coerce(repr(value)) == value
