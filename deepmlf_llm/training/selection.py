"""Which adapter a run ends with: the best of its evaluations, or an average that is better still on validation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from deepmlf_llm.adapters import files
from deepmlf_llm.training.averaging import copy_into, mean_of, trained_tensors
from deepmlf_llm.training.checkpoints import flaw
from deepmlf_llm.training.launch import Launch, say
from deepmlf_llm.training.result import check_best
from deepmlf_llm.training.scores import Score, score

BEST, EMA, LAST = "best", "ema", "last"


def select(trainer: Any, validation: Any, dataset: str, launch: Launch) -> tuple[Score, dict[str, Any] | None]:
    """Puts the adapter that wins on validation into the model. An average wins only if it is better than the best.

    Args:
        trainer: after its training.
        validation: the split.
        dataset: label rule.
        launch: of the run.

    Returns:
        What the winner has on validation, and ``selection`` of ``result.json``: the metric, who was taken, each
        candidate's figures; None where there was one candidate only.

    Raises:
        RunError: no evaluation gave a value to select by, or the best adapter was not restored.
    """
    trainer.load_best()
    metric = trainer.args.metric_for_best_model.removeprefix("eval_")
    found, value = _on_validation(trainer, validation, dataset, BEST, metric)
    check_best(trainer, found.metrics)
    won, best_value, best_found = BEST, value, found
    tensors: Mapping[str, Tensor] = {
        name: tensor.detach().clone() for name, tensor in trained_tensors(trainer.model).items()
    }
    candidates = {BEST: {"step": trainer.state.best_global_step, metric: value, "metrics": found.metrics}}
    for name, facts, average in _averages(trainer, launch):
        copy_into(trainer.model, average)
        found, value = _on_validation(trainer, validation, dataset, name, metric)
        candidates[name] = {**facts, metric: value, "metrics": found.metrics}
        if value > best_value if trainer.args.greater_is_better else value < best_value:  # never of one that is NaN
            won, best_value, best_found, tensors = name, value, found, average
    if len(candidates) == 1:
        return best_found, None
    copy_into(trainer.model, tensors)
    compared = ", ".join(f"{name} {facts[metric]:.4f}" for name, facts in candidates.items())
    say(f"{metric} on validation: {compared}; taken: {won}", launch)
    return best_found, {"metric": metric, "taken": won, "candidates": candidates}


def _on_validation(trainer: Any, validation: Any, dataset: str, name: str, metric: str) -> tuple[Score, float]:
    found = score(trainer, validation, "valid", dataset, prefix=name)
    return found, trainer.state.log_history[-1][f"{name}_{metric}"]


def _averages(trainer: Any, launch: Launch) -> Iterator[tuple[str, dict[str, Any], Mapping[str, Tensor]]]:
    """Name, facts and tensors of each average that the run has been told to make."""
    if trainer.ema is not None:
        yield EMA, {"decay": trainer.ema.decay, "steps": trainer.ema.steps}, trainer.ema.tensors
    steps = trainer.averaged_steps()
    run = Path(trainer.args.output_dir)
    directories = [run / f"checkpoint-{step}" for step in steps]
    broken = {path.name: reason for path in directories if (reason := flaw(path)) is not None}
    for name, reason in broken.items():
        say(f"average_last: left out, {name}: {reason}", launch)
    if steps and not broken:
        yield f"{LAST}_{len(steps)}", {"steps": steps}, mean_of(files.read_adapter(path)[1] for path in directories)
