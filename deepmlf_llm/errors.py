"""One family of errors: what was given, what was expected, where it came from, what to do.

A :class:`DeepMLFError` means that the input is at fault, not the program: recipes print its message as one line and
exit with code 2. Anything else that escapes is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class DeepMLFError(Exception):
    """The user's input is at fault; the message says which part of it and what to do."""

    exit_code = 2
    """Of a command that ends with it."""


class ConfigError(DeepMLFError, ValueError):
    """A setting is unknown, out of range, or contradicts another one."""


class DataError(DeepMLFError, ValueError):
    """A data file or directory is missing, foreign, or holds what it must not."""


class BaseModelError(DeepMLFError):
    """The base model cannot be found, or is not a causal decoder that we can extend."""


class InjectionError(DeepMLFError):
    """MM Blocks cannot be put into this decoder; the decoder is left as it was."""


class AdapterError(DeepMLFError):
    """An adapter file is damaged or does not fit; nothing of it has been loaded."""


class FileError(DeepMLFError):
    """A file or directory cannot be written where it is wanted: no room, no permission, something else in its place."""


class RunError(DeepMLFError):
    """A run cannot start or go on here, for example because its directory holds another run."""


class MissingPackageError(DeepMLFError):
    """A package that this use needs is not installed; the message has the pip line."""


def suggest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the nearest of ``known``, or an empty string."""
    known = list(known)
    near = [entry for entry in known if entry.casefold() == name.casefold()]
    near = near or get_close_matches(name, known, n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


class Problems:
    """Collects what is wrong, so that one error names everything at once.

    >>> problems = Problems(ConfigError, "settings")
    >>> problems.check(3 > 0, "depth must be positive")
    >>> problems.raise_if_any()
    """

    def __init__(self, error: type[DeepMLFError], source: str) -> None:
        self.error = error
        self.source = source
        self.messages: list[str] = []

    def check(self, holds: bool, message: str) -> None:
        """Note ``message`` unless ``holds``."""
        if not holds:
            self.messages.append(message)

    def raise_if_any(self) -> None:
        """Raises the collected messages as one error, if there are any."""
        if self.messages:
            raise self.error(f"{self.source}: " + "; ".join(self.messages))
