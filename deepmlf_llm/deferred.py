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
from importlib.abc import Loader, MetaPathFinder
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
        module = sys.modules.get(self._module)
        # The stand-in is still there where a class is derived from one of its names (scipy 1.12, in scipy.integrate).
        loaded = _real(module) if isinstance(module, _StandIn) else importlib.import_module(self._module)
        return getattr(loaded, self._name)

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


class _StandIn(ModuleType):
    """In the place of a module. It counts as a package: what is imported from below it loads the module itself."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []
        self.__spec__ = ModuleSpec(name, None)


class _Names(_StandIn):
    """In the place of a module of :data:`DEFERRED`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Deferred(self.__name__, name)


class _Compiler(_StandIn):
    """In the place of the compiler: marks do nothing until it is loaded, and whatever else is asked of it loads it."""

    def __getattr__(self, name: str) -> Any:
        if name in MARKS:
            return _unmarked
        if name == "disable":
            return _disabled
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_real(self), name)


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

    stand_ins: list[_StandIn] = [_Names(name) for name in DEFERRED if name not in sys.modules]
    if COMPILER not in sys.modules:
        stand_ins.append(_Compiler(COMPILER))
        vars(torch)["_dynamo"] = stand_ins[-1]
    below = _Below(stand_ins)
    sys.modules.update((module.__name__, module) for module in stand_ins)
    sys.meta_path.insert(0, below)
    try:
        yield
    finally:
        sys.meta_path.remove(below)
        for module in stand_ins:
            _remove(module)


class _Below(MetaPathFinder):
    """Imports from below a stand-in, as other packages make them (torchvision: ``torch._dynamo.utils``)."""

    def __init__(self, stand_ins: list[_StandIn]) -> None:
        self.stand_ins = stand_ins

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        for module in self.stand_ins:
            if name.startswith(f"{module.__name__}.") and sys.modules.get(module.__name__) is module:
                _real(module)
                importlib.import_module(name)
                return ModuleSpec(name, _Loaded())
        return None


class _Loaded(Loader):
    """Hands out a module that is there, as it is."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = sys.modules[spec.name]
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


def _real(module: _StandIn) -> ModuleType:
    """The module itself, loaded without stand-ins for parts of it."""
    for name, other in list(sys.modules.items()):
        if isinstance(other, _StandIn) and f"{name}.".startswith(f"{module.__name__}."):
            _remove(other)
    return importlib.import_module(module.__name__)


def _remove(module: ModuleType) -> None:
    import torch

    if sys.modules.get(module.__name__) is module:
        del sys.modules[module.__name__]
    if vars(torch).get("_dynamo") is module:
        del vars(torch)["_dynamo"]
