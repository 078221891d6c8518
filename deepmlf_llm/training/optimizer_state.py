"""The optimizer's state, whole, whoever has split it: what a checkpoint holds is what one process would have saved.

DeepSpeed keeps the weights of a group end to end in one flat piece, of which each process has a share. Here that is put
together by weight, in the form of PyTorch's own ``optimizer.state_dict()``, and taken apart again for another number of
processes, another ZeRO stage, or none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepmlf_llm.errors import RunError
from deepmlf_llm.paths import shown
from deepmlf_llm.training.trusted import tensors_only

FILE = "optimizer.pt"
_STEP = "step"


def holds_optimizer(checkpoint: Path) -> bool:
    """Whether a checkpoint has the whole state; earlier versions left DeepSpeed's own files only."""
    return (checkpoint / FILE).is_file()


def can_gather(engine: Any) -> bool:
    """Whether the state of this DeepSpeed engine is numbers for each weight, and in memory: not on NVMe."""
    zero = engine.optimizer
    if getattr(zero, "swap_optimizer", False):
        return False
    flats = [flat for group in _flat_groups(zero) for flat in group]
    return all(
        _is_common(name, value) or value.shape == flat.shape
        for flat in flats
        for name, value in _state(zero, flat).items()
    )


def gather(engine: Any, groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The state dict of the optimizer that one process without an engine would have; every process calls this.

    Args:
        engine: DeepSpeed's, ZeRO 1, 2 or 3.
        groups: of the optimizer before the engine took it: ``params`` and settings, in their order.
    """
    zero = engine.optimizer
    inner = _inner(zero)
    _link(zero)
    state: dict[int, dict[str, Any]] = {}
    saved_groups = []
    number = 0
    for group, live, flats in zip(groups, inner.param_groups, _flat_groups(zero), strict=True):
        kept = {name: value for name, value in live.items() if name != "params"}
        saved_groups.append({**kept, "params": list(range(number, number + len(group["params"])))})
        known = next((_state(zero, flat) for flat in flats if _state(zero, flat)), {})
        for parameter in group["params"]:
            if known:
                state[number] = {name: _whole(parameter, name, value) for name, value in known.items()}
            number += 1
    return {"state": state, "param_groups": saved_groups}


def scatter(engine: Any, groups: Sequence[Mapping[str, Any]], saved: Mapping[str, Any]) -> None:
    """Gives an engine that has made no step yet its share of a whole state.

    Args:
        engine, groups: as for :func:`gather`.
        saved: a state dict of it.

    Raises:
        RunError: it is of other weights.
    """
    zero = engine.optimizer
    inner = _inner(zero)
    counts = [len(group["params"]) for group in groups]
    if [len(group["params"]) for group in saved["param_groups"]] != counts:
        raise RunError("the optimizer's state is of another model: its groups have other numbers of weights")
    numbers = iter(range(sum(counts)))
    for group, live, flats, told in zip(
        groups, inner.param_groups, _flat_groups(zero), saved["param_groups"], strict=True
    ):
        live.update({name: value for name, value in told.items() if name != "params"})
        own = [(parameter, saved["state"].get(next(numbers), {})) for parameter in group["params"]]
        for flat in flats:
            _state(zero, flat).update(_fresh(flat, live, [state for _, state in own]))
    _link(zero)
    numbers = iter(range(sum(counts)))
    for group in groups:
        for parameter in group["params"]:
            for name, value in saved["state"].get(next(numbers), {}).items():
                if not _is_common(name, value):
                    _give(parameter, name, value)


def read(checkpoint: Path) -> dict[str, Any]:
    """The whole state of a checkpoint, as tensors and numbers only.

    Raises:
        RunError: it holds something else.
    """
    with tensors_only(checkpoint):
        found: dict[str, Any] = torch.load(checkpoint / FILE, map_location="cpu", weights_only=True)
    if not {"state", "param_groups"} <= set(found):
        raise RunError(f"{shown(checkpoint / FILE)}: holds no optimizer's state; delete the checkpoint")
    return found


def _link(zero: Any) -> None:
    """Tells ZeRO 1 and 2 where each weight's state lies. It does so itself once, after its first group's step, when the
    others have none yet."""
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _inner(zero: Any) -> torch.optim.Optimizer:
    """PyTorch's optimizer inside DeepSpeed's."""
    found: torch.optim.Optimizer = zero.optimizer
    return found


def _flat_groups(zero: Any) -> Iterator[list[Tensor]]:
    """Of each group the flat pieces that this process has; ZeRO-3 may cut a group into several."""
    if hasattr(zero, "single_partition_of_fp32_groups"):
        yield from ([flat] for flat in zero.single_partition_of_fp32_groups)
        return
    of_group: dict[int, list[Tensor]] = {}
    for piece, flat in enumerate(zero.fp32_partitioned_groups_flat):
        of_group.setdefault(zero.sub_group_to_group_id[piece], []).append(flat)
    yield from (of_group[group] for group in sorted(of_group))


def _state(zero: Any, flat: Tensor) -> dict[str, Any]:
    found: dict[str, Any] = _inner(zero).state[flat]
    return found


def _is_common(name: str, value: Any) -> bool:
    """Whether all weights of a group share it: how many steps were made; not a number of each weight's own."""
    return name == _STEP or not isinstance(value, Tensor)


def _whole(parameter: nn.Parameter, name: str, known: Any) -> Any:
    """One weight's part of a state, whole, on the CPU; every process calls this."""
    from deepspeed.utils import safe_get_full_optimizer_state

    if _is_common(name, known):
        return known.detach().cpu().clone() if isinstance(known, Tensor) else known
    whole = safe_get_full_optimizer_state(parameter, name)
    return whole.detach().cpu().reshape(getattr(parameter, "ds_shape", parameter.shape)).clone()


def _fresh(flat: Tensor, group: Mapping[str, Any], states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The state of a flat piece, zeros where :func:`_give` will fill it in."""
    template = next((state for state in states if state), {})
    made: dict[str, Any] = {}
    for name, value in template.items():
        if _is_common(name, value):
            on_device = group.get("fused") or group.get("capturable")
            made[name] = value.clone().to(flat.device if on_device else "cpu") if isinstance(value, Tensor) else value
        else:
            made[name] = torch.zeros_like(flat, dtype=value.dtype)
    return made


def _give(parameter: Any, name: str, value: Tensor) -> None:
    """Puts this process' share of one weight's state in its place."""
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if not hasattr(parameter, "ds_id"):
        safe_set_full_optimizer_state(parameter, value.to(parameter.device), name)
        return
    length = parameter.ds_tensor.numel()  # the last share is filled up
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    share = value.new_zeros(length)
    mine = value.flatten()[rank * length : (rank + 1) * length]
    share[: len(mine)] = mine
    safe_set_local_optimizer_state(parameter, share, name)
