"""Which keys of a row are read, and as what: none that holds features is left out without a message."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from deepmlf_llm.data.names import did_you_mean, nearest_name
from deepmlf_llm.errors import ConfigError, DataError

_NAMED = 40  # keys that are remembered, so that rows of a million different keys cost nothing


class ColumnError(DataError):
    """A key of a row has another name than the model uses."""


class Columns:
    """The keys of a row by their meaning.

    Args:
        modalities: names that a row may hold features under; none: a model that reads text alone, for which no key
            can be a misspelt modality, so that one with a sequence is left out and reported like any other.
        rename: key of the rows -> the name it is read as.
        ignore: keys that are not read, whatever they hold.

    Attributes:
        unread: keys that were met, are not known and hold no sequence.

    Raises:
        ConfigError: ``rename`` gives a name that is not known, or one name to two keys.
    """

    def __init__(
        self, modalities: Iterable[str], rename: Mapping[str, str] | None = None, ignore: Iterable[str] = ()
    ) -> None:
        self.modalities = list(modalities)
        self.known = ["id", "text", "label", *self.modalities]
        self.rename = dict(rename or {})
        self.ignore = set(ignore)
        self.unread: dict[str, None] = {}
        self._met: set[str] = set()
        for old, new in self.rename.items():
            if new not in self.known:
                known = ", ".join(self.known)
                raise ConfigError(f"--rename {old}={new}{did_you_mean(new, self.known)}: rows are read as {known}")
        if len(set(self.rename.values())) < len(self.rename):
            raise ConfigError(f"--rename {self.rename}: two keys get one name")

    def read(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The known values of a row, by their known names.

        Raises:
            DataError: two values for one name, an id that is none, or (a :class:`ColumnError`) a key that is not known
                and holds a sequence, or a text under another name.
        """
        found: dict[str, Any] = {}
        strange: list[str] = []
        for key, value in row.items():
            name = self.rename.get(key, key)
            if key in self.rename:
                self._met.add(key)
            if name in found:
                raise DataError(f"two values of {name!r}, one of them renamed")
            if name in self.known:
                found[name] = value
            elif self.modalities and key not in self.ignore and holds_sequence(value):
                strange.append(key)
            elif key not in self.ignore and len(self.unread) < _NAMED:
                self.unread.setdefault(key)
        if strange:
            raise ColumnError(self._strange(strange))
        if found.get("text") is None:
            texts = [key for key, value in row.items() if isinstance(value, str) and key not in self.known]
            if other := next((key for key in texts if nearest_name(key, ["text"])), None):
                raise ColumnError(f"no 'text', but {other[:60]!r}: --rename {other[:60]}=text reads it")
        check_identity(found.get("id"))
        return found

    def _strange(self, names: list[str]) -> str:
        shown = names[:4]
        renamed = [f"{name}={near}" for name in shown if (near := nearest_name(name, self.modalities))]
        hints = [f"--rename {' '.join(renamed)} reads it"] if renamed else []
        hints.append(f"--ignore {' '.join(shown)} leaves it out")
        what = ", ".join(f"{name[:60]!r}{did_you_mean(name, self.modalities)}" for name in shown)
        known = ", ".join(self.modalities) or "none"
        return f"unknown key {what} holds a sequence; the modalities are {known}; {', '.join(hints)}"

    def unread_note(self) -> str:
        """A sentence on what was not read; empty where everything was."""
        if not self.unread:
            return ""
        names = ", ".join(f"{name[:60]!r}{did_you_mean(name, self.modalities)}" for name in self.unread)
        return f"not read, because they are no {', '.join(self.known)}: {names}"

    def unmet_notes(self) -> list[str]:
        """A sentence for each renamed key that no row had."""
        return [f"--rename {old}={new}: no row has {old!r}" for old, new in self.rename.items() if old not in self._met]


def check_identity(value: Any) -> None:
    """Raises DataError unless ``value`` can be the id of an utterance: text, a number, or None."""
    if value is None or isinstance(value, (str, int)):
        return
    if not isinstance(value, float) or not math.isfinite(value):
        kind = "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else f"{value!r}"[:60]
        raise DataError(f"id is {kind}, expected text or a number")


def holds_sequence(value: Any) -> bool:
    """Whether there is a list, an array or bytes that are not empty in ``value``, at any depth of objects."""
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, dict):
            waiting.extend(inner.values())
        elif isinstance(inner, (list, tuple, bytes)):
            if len(inner):
                return True
        elif isinstance(inner, np.ndarray) and inner.size:
            return True
    return False
