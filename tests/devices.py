"""`make test DEVICE=cuda`: every test that builds a model in its own process builds it there.

Commands that tests start choose their device themselves, as they do for users. In the folders of :data:`BY_HAND` tests
also make by hand what models get, so there every new tensor lies on the device. Elsewhere our own code moves batches,
and toys alone are put there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

VARIABLE = "DEEPMLF_TEST_DEVICE"
BY_HAND = ("adapters", "backbones", "fusion", "model", "modules", "planning", "test_learning", "test_old_files")


def chosen() -> str:
    """The device that ``make test`` was asked for; ``"cpu"`` changes nothing."""
    return os.environ.get(VARIABLE) or "cpu"


def rounding(on_cpu: float) -> float:
    """A tolerance of figures that training makes: on CUDA it runs in bf16 autocast, whose rounding is 4e-3."""
    return on_cpu if chosen() == "cpu" else max(on_cpu, 5e-3)


def missing(device: str) -> str | None:
    """Why no test can run on ``device``, in one sentence; None where it is there."""
    if device.partition(":")[0] in ("cpu", "meta"):
        return None
    import torch

    if device.startswith("cuda") and torch.cuda.is_available():
        return None
    return f"DEVICE={device}: torch {torch.__version__} sees no such device here; leave DEVICE out to test on the CPU"


@contextmanager
def built_on(device: str, by_hand: bool) -> Iterator[None]:
    """Toys, and with ``by_hand`` every new tensor, on ``device``."""
    from torch.overrides import TorchFunctionMode
    from torch.utils._device import _device_constructors

    from deepmlf_llm.backbones import loading

    constructors = _device_constructors()

    drawing = False  # a toy: its weights come from a CPU's generator, the same ones on every device

    class OnDevice(TorchFunctionMode):
        def __torch_function__(
            self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            kwargs = dict(kwargs or {})
            if drawing or function not in constructors or kwargs.get("device") is not None:
                return function(*args, **kwargs)
            if kwargs.get("generator") is not None:  # of a CPU: the same draws on every device
                return function(*args, **kwargs).to(device)
            kwargs["device"] = device
            return function(*args, **kwargs)

    toy = loading.toy_model

    def toy_on_device(*args: Any, **changes: Any) -> Any:
        nonlocal drawing
        drawing = True
        try:
            return toy(*args, **changes).to(device)
        finally:
            drawing = False

    loading.toy_model = toy_on_device
    try:
        if not by_hand:
            yield
            return
        with OnDevice():
            yield
    finally:
        loading.toy_model = toy
