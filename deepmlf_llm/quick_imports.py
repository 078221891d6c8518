"""bitsandbytes is imported without PyTorch's compiler, so that a command starts seconds earlier.

PEFT imports bitsandbytes wherever it is installed. At import that hands four of its functions to ``torch.compile``,
which loads all of ``torch._inductor``, a quarter of the time that a prediction needs to start. Here they are compiled
when they are first called, if ever.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

from deepmlf_llm.extras import installed


def import_bitsandbytes() -> None:
    """Imports it, where it is installed; to be called before PEFT is imported."""
    if installed("bitsandbytes") and "bitsandbytes" not in sys.modules:
        with compiled_when_called(), _quiet("bitsandbytes.backends.cpu.ops"):
            import bitsandbytes  # noqa: F401


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """No warnings of that logger in here: on CPUs with AVX512-BF16 it asks everybody for one more package."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def compiled_when_called() -> Iterator[None]:
    """What is handed to ``torch.compile`` in here is compiled at its first call."""
    import torch

    compile_now = torch.compile

    def compile_later(model: Callable[..., Any] | None = None, **options: Any) -> Any:
        if model is None:  # as a decorator with arguments
            return lambda function: compile_later(function, **options)

        @cache
        def compiled() -> Callable[..., Any]:
            return compile_now(model, **options)

        @wraps(model)
        def call(*args: Any, **kwargs: Any) -> Any:
            return compiled()(*args, **kwargs)

        return call

    torch.compile = compile_later
    try:
        yield
    finally:
        torch.compile = compile_now
