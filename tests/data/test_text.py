from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepmlf_llm.data.text import CASES, normalise_text, word_statistics
from deepmlf_llm.errors import ConfigError
from deepmlf_llm.tasks import TASKS


@pytest.mark.parametrize(
    ("text", "lower", "sentence"),
    [
        ("IT WAS  REALLY GOOD ", "it was really good", "It was really good"),
        ("I THINK I'M SURE I'LL SAY I'VE SEEN WHAT I'D SEE", None, "I think I'm sure I'll say I've seen what I'd see"),
        ("SO DO I", "so do i", "So do I"),
        ("I, TOO", "i, too", "I, too"),
        ("ITS INSANE IN IBIZA", "its insane in ibiza", "Its insane in ibiza"),
        ("RAI'I AND AN I-BEAM", "rai'i and an i-beam", "Rai'i and an i-beam"),
        ("'TIS 3 O'CLOCK", "'tis 3 o'clock", "'Tis 3 o'clock"),
        ("ÉCLAIR", "éclair", "Éclair"),
        ("", "", ""),
        ("42", "42", "42"),
    ],
)
def test_case(text, lower, sentence):
    assert normalise_text(text, "lower") == (text.lower() if lower is None else lower)
    assert normalise_text(text, "sentence") == sentence
    assert normalise_text(text, "keep") == text


@given(st.text(), st.sampled_from(CASES))
def test_normalising_twice_changes_nothing_more(text, case):
    once = normalise_text(text, case)
    if once.isascii():  # lower() of some letters, such as a dotted capital i, is not stable under upper()
        assert normalise_text(once, case) == once


def test_unknown_case_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"case='sentense'.*did you mean 'sentence'"):
        normalise_text("a", "sentense")


def test_default_case_is_one_of_the_cases():
    assert {task.text_case for task in TASKS.values()} <= set(CASES)


def test_word_statistics():
    assert word_statistics(["a b", "", "a b c d", "a"]) == {"median": 1.5, "max": 4, "empty": 1}
    assert word_statistics(["a b c"]) == {"median": 3.0, "max": 3, "empty": 0}
