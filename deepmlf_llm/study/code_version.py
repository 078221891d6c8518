"""What makes two runs the same run: settings and data, and the code that computed them."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
from collections.abc import Iterable
from pathlib import Path

import deepmlf_llm

# Rooms and files that compute nothing of a cell's result: plans and reports, files of finished adapters, messages.
_NOT_IN_A_CELL = ("study", "ablation", "baselines", "statistics", "adapters", "commands", "inference", "paths.py")
_LIBRARIES = ("torch", "transformers", "peft")


def code_version(recipe: Path) -> str:
    """Changes when the training code, or a library that computes, does; comments, docstrings and layout do not count.

    Args:
        recipe: the training recipe that cells run.
    """
    libraries = (f"{library} {importlib.metadata.version(library)}\n" for library in _LIBRARIES)
    return _digest([*_named_meanings(_files(recipe)), *libraries])


def digest_of(paths: Iterable[Path]) -> str:
    """Changes when what these files compute does."""
    return _digest(_named_meanings((path.name, path) for path in paths))


class CodeWatch:
    """The code version, computed again only when a file's time or size has changed."""

    def __init__(self, recipe: Path) -> None:
        self._recipe = recipe
        self._seen: list[tuple[str, int, int]] = []
        self._version = ""

    def __call__(self) -> str:
        seen = [(str(path), (facts := path.stat()).st_mtime_ns, facts.st_size) for _, path in _files(self._recipe)]
        if seen != self._seen:
            self._version, self._seen = code_version(self._recipe), seen
        return self._version


def combined(*parts: str) -> str:
    """One fingerprint of several."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _files(recipe: Path) -> list[tuple[str, Path]]:
    """What a cell runs: (name, file)."""
    package = Path(deepmlf_llm.__file__).parent
    named = [(path.relative_to(package).as_posix(), path) for path in sorted(package.rglob("*.py"))]
    return [(recipe.name, recipe), *((n, p) for n, p in named if n.partition("/")[0] not in _NOT_IN_A_CELL)]


def _named_meanings(files: Iterable[tuple[str, Path]]) -> list[str]:
    return [f"{name}\n{_meaning(path.read_text(encoding='utf-8'))}\n" for name, path in files]


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def _meaning(source: str) -> str:
    """The syntax tree of a module, without docstrings and positions."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and body:
            first = body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = body[1:] or [ast.Pass()]
    return ast.dump(tree)
