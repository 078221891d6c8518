"""All that is left of a run, without clocks and places: two runs that are equal in this are equal."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from deepmlf_llm.training.checkpoints import all_checkpoints
from deepmlf_llm.training.metrics_log import read_metrics

CLOCKS = ("runtime", "per_second")
_STATES = ("optimizer.pt", "scheduler.pt", "rng_state*.pth")


def run_state(run: Path) -> dict[str, str]:
    """Part -> a hash of it: adapter, optimizer, scheduler, random numbers, sampler and log (Trainer's), metrics."""
    last = all_checkpoints(run)[0]
    result = json.loads((run / "result.json").read_text())
    parts: dict[str, Any] = {
        "state": trainer_state(last),
        "log": [timeless(line) for line in read_metrics(run / "metrics.jsonl")],
        "adapter": (run / "adapter" / "adapter_model.safetensors").read_bytes(),
        "weights": (last / "adapter_model.safetensors").read_bytes(),
        "metrics": (result["metrics"], result["heads"]),
    }
    for pattern in _STATES:
        for path in sorted(last.glob(pattern)):
            parts[path.name] = _content(torch.load(path, weights_only=False))
    return {name: hashlib.sha256(_bytes(value)).hexdigest() for name, value in parts.items()}


def trainer_state(checkpoint: Path) -> dict[str, Any]:
    """Trainer's own state in a checkpoint, without clocks and places."""
    state: dict[str, Any] = json.loads((checkpoint / "trainer_state.json").read_text())
    state["best_model_checkpoint"] = Path(state["best_model_checkpoint"] or "none").name
    state["log_history"] = [timeless(line) for line in state["log_history"]]
    return state


def unequal(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Names of the parts that differ."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def timeless(line: dict[str, Any]) -> dict[str, Any]:
    """A line of a log without what a clock says."""
    return {name: value for name, value in line.items() if not any(clock in name for clock in CLOCKS)}


def _content(value: Any) -> Any:
    """What a torch file holds, every bit of it, as text and numbers."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes().hex()
    if hasattr(value, "tobytes"):
        return str(value.dtype), value.tobytes().hex()
    if isinstance(value, dict):
        return {str(name): _content(inner) for name, inner in value.items()}
    return [_content(inner) for inner in value] if isinstance(value, list | tuple) else repr(value)


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value, sort_keys=True, default=str).encode()
