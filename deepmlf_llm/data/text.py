"""Transcripts: their case, and how long they are."""

from __future__ import annotations

import re
from collections.abc import Sequence

from deepmlf_llm.errors import ConfigError, suggest
from deepmlf_llm.tasks.regression import TEXT_CASES

CASES = TEXT_CASES

_PRONOUN = re.compile(r"(?<![\w'])i(?=$|[^\w'-]|'(?:m|ve|ll|d)\b)")
_FIRST_LETTER = re.compile(r"[^\W\d_]")


def normalise_text(text: str, case: str) -> str:
    """The transcript as the language model shall read it; predictions must use the case of the training data.

    Args:
        text: one transcript.
        case: ``"lower"``; ``"sentence"``: lower, then the first letter and the pronoun I (I'm, I've, I'll, I'd) upper,
            meant for transcripts that are upper case throughout, since names are lowered too; ``"keep"``: unchanged.
            The first two also squeeze white space.

    Raises:
        ConfigError: unknown ``case``.
    """
    if case not in CASES:
        raise ConfigError(f"case={case!r}: expected one of {', '.join(CASES)}{suggest(case, CASES)}")
    if case == "keep":
        return text
    text = " ".join(text.lower().split())
    if case == "lower":
        return text
    text = _PRONOUN.sub("I", text)
    return _FIRST_LETTER.sub(lambda match: match[0].upper(), text, count=1)


def word_statistics(texts: Sequence[str]) -> dict[str, float]:
    """``median`` and ``max`` number of words (separated by white space), and how many transcripts are ``empty``."""
    counts = sorted(len(text.split()) for text in texts)
    middle = len(counts) // 2
    median = counts[middle] if len(counts) % 2 else (counts[middle - 1] + counts[middle]) / 2
    return {"median": float(median), "max": counts[-1], "empty": sum(count == 0 for count in counts)}
