"""Some layers of a decoder as a body of their own, beside the live one and without touching it.

A segment is another object over the same parts: layers, parameters, buffers and hooks are the LM's own, so LoRA that
was put in later, ZeRO-3's hooks, a move to another device and another attention kernel all hold for it. Each pass
makes its own, which takes microseconds: nothing can go stale, and passes of several threads share nothing that one of
them changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from types import MethodType
from typing import Any

from torch import Tensor, nn

from deepmlf_llm.backbones.interface import Decoder
from deepmlf_llm.errors import InjectionError

ENTERING = "entering_states"  # keyword argument of a pass that begins above layer 0: the states that enter there


class _Skipped(nn.Module):
    """In the place of a layer that does not run, so that the others keep their number: masks go by it."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states


class _Entrance(nn.Module):
    """In the place of the last skipped layer: passes on the states that enter, whatever arrives (GPT-2 adds positions
    before layer 0)."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        entering: Tensor = kwargs[ENTERING]
        return entering


_SKIPPED, _ENTRANCE, _NO_NORM = _Skipped(), _Entrance(), nn.Identity()


def segment(decoder: Decoder, first: int = 0, last: int | None = None, keep_activations: bool = False) -> Any:
    """What runs layers ``first .. last - 1``, to be called as the LM's body is.

    Args:
        decoder: the LM.
        first, last: range of layers; above layer 0 the pass also gets ``entering_states``. ``last=None``: to the end
            (``decoder.end``), and the final norm.
        keep_activations: no activation checkpointing: a layer that transformers checkpoints drops its cache.

    Raises:
        InjectionError: somebody replaced a ``forward`` in a way that cannot be followed.
    """
    layers: list[nn.Module] = list(decoder.layers)[: decoder.end]
    checkpointed = keep_activations and any(layer.training for layer in layers)
    if first == 0 and last is None and decoder.end is None and not checkpointed:
        return decoder.body
    running = layers[first:last]
    if checkpointed:
        running = [_without_checkpointing(layer) if layer.training else layer for layer in running]
    skipped = [_SKIPPED] * (first - 1) + [_ENTRANCE] if first > 0 else []
    body = _twin(decoder.body)
    if checkpointed:
        body.training = False  # GPT-2's body itself drops the cache
    _place(body, decoder.interface.layers, _module_list(decoder.layers, [*skipped, *running]))
    if last is not None:
        _place(body, decoder.interface.final_norm, _NO_NORM)
    return _compiled_like(decoder.body, body)


def _twin(module: Any) -> Any:
    """Another object over the same parts, which may be exchanged in it one by one.

    Raises:
        InjectionError: its ``forward`` is an arbitrary function, which would run ``module`` and not the twin.
    """
    twin = object.__new__(type(module))
    own = {name: _rebound(value, module, twin) for name, value in vars(module).items()}
    own["_modules"] = dict(own["_modules"])
    forward = own.get("forward")
    if forward is not None and forward is vars(module)["forward"]:
        raise InjectionError(
            f"the forward of the language model's {type(module).__name__} was replaced by {forward!r}: it cannot be "
            "run in parts; bind it to its module (types.MethodType), or set model.fused_decoder.text_once = False"
        )
    own.pop("_compiled_call_impl", None)
    vars(twin).update(own)
    return twin


def _rebound(value: Any, module: nn.Module, twin: nn.Module) -> Any:
    """Methods of ``module`` that lie in its own dictionary (kernels, accelerate's hooks) as the twin's."""
    if isinstance(value, MethodType) and value.__self__ is module:
        return MethodType(value.__func__, twin)
    if isinstance(value, partial) and any(part is module for part in value.args):
        return partial(value.func, *(twin if part is module else part for part in value.args), **value.keywords)
    return value


def _without_checkpointing(layer: nn.Module) -> nn.Module:
    twin = _twin(layer)
    twin.training = False
    return twin


def _module_list(like: nn.ModuleList, layers: Iterable[nn.Module]) -> nn.ModuleList:
    modules: nn.ModuleList = _twin(like)
    vars(modules)["_modules"] = {str(index): layer for index, layer in enumerate(layers)}
    return modules


def _place(root: Any, path: str, module: nn.Module) -> None:
    """Puts ``module`` at ``path`` below the twin ``root``; modules on the way become twins too."""
    *way, name = path.split(".")
    for step in way:
        twin = _twin(getattr(root, step))
        vars(root)["_modules"][step] = twin
        root = twin
    vars(root)["_modules"][name] = module


def _compiled_like(body: nn.Module, twin: nn.Module) -> Callable[..., Any]:
    """``twin``, compiled as ``body`` was with ``body.compile(...)``: torch keeps how in what it calls instead."""
    compiled = vars(body).get("_compiled_call_impl")
    if compiled is None:
        return twin
    from torch._dynamo.eval_frame import OptimizeContext

    for cell in compiled.__closure__ or ():
        if isinstance(cell.cell_contents, OptimizeContext):
            vars(twin)["_compiled_call_impl"] = cell.cell_contents(twin._call_impl)
    return twin
