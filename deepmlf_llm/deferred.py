"""transformers without PyTorch's compiler and scipy, as long as nobody uses them: commands start seconds earlier.

At import transformers takes a matching algorithm for object detection from scipy, and marks functions for PyTorch's
compiler; weights that are drawn on the meta device, as it makes every model, load the compiler as well. In here a name
stands for itself until it is used, and only then is its package loaded. Nothing else changes.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

DEFERRED = ("scipy.optimize", "torch._dynamo._trace_wrapped_higher_order_op")
"""Modules whose names are not used while transformers is imported."""
COMPILER = "torch._dynamo"
MARKS = ("allow_in_graph", "assume_constant_result")
"""What decorates functions at import for the compiler alone: kernels for FP8 and mixtures of experts."""


class Deferred:
    """A class or a function that is looked up when it is used.

    Args:
        module, name: where it is.
    """

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def _found(self) -> Any:
        return getattr(importlib.import_module(self._module), self._name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._found()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._found(), name)

    def __instancecheck__(self, value: Any) -> bool:
        return self._module in sys.modules and isinstance(value, self._found())

    def __subclasscheck__(self, kind: type) -> bool:
        return self._module in sys.modules and issubclass(kind, self._found())

    def __or__(self, other: Any) -> Any:  # in annotations
        return Any

    __ror__ = __or__

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._found(),)


class _Names(ModuleType):
    """In the place of a module of :data:`DEFERRED`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Deferred(self.__name__, name)


class _Compiler(ModuleType):
    """In the place of the compiler: marks do nothing until it is loaded, and whatever else is asked of it loads it."""

    def __getattr__(self, name: str) -> Any:
        if name in MARKS:
            return _unmarked
        if name == "disable":
            return _disabled
        if name.startswith("__"):
            raise AttributeError(name)
        _remove(self)
        return getattr(importlib.import_module(COMPILER), name)


def _disabled(function: Callable[..., Any] | None = None, *args: Any, **options: Any) -> Any:
    """``torch._dynamo.disable``: nothing to disable as long as there is no compiler."""
    if function is None:
        return partial(_disabled, **options)
    plain, kept = function, list[Any]()

    @wraps(plain)
    def call(*given: Any, **named: Any) -> Any:
        compiler = sys.modules.get(COMPILER)
        if compiler is None or isinstance(compiler, _Compiler):
            return plain(*given, **named)
        if not kept:
            kept.append(compiler.disable(plain, *args, **options))
        return kept[0](*given, **named)

    return call


def _unmarked(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def import_transformers() -> None:
    """Imports it, as far as every model needs it; to be called before anything else does."""
    if "transformers" in sys.modules:
        return
    with deferred():
        import transformers.masking_utils
        import transformers.modeling_utils
        import transformers.models.auto.modeling_auto  # noqa: F401


@contextmanager
def deferred() -> Iterator[None]:
    """Names of modules that are not loaded yet are deferred in here."""
    import torch

    stand_ins: list[ModuleType] = [_Names(name) for name in DEFERRED if name not in sys.modules]
    if COMPILER not in sys.modules:
        stand_ins.append(_Compiler(COMPILER))
        vars(torch)["_dynamo"] = stand_ins[-1]
    for module in stand_ins:
        module.__spec__ = ModuleSpec(module.__name__, None)
        sys.modules[module.__name__] = module
    try:
        yield
    finally:
        for module in stand_ins:
            _remove(module)


def _remove(module: ModuleType) -> None:
    import torch

    if sys.modules.get(module.__name__) is module:
        del sys.modules[module.__name__]
    if vars(torch).get("_dynamo") is module:
        del vars(torch)["_dynamo"]
