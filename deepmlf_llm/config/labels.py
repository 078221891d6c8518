"""What an adapter's labels are, as its settings say it: the task, and labels of one modality alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deepmlf_llm.config.rules import brief
from deepmlf_llm.errors import ConfigError
from deepmlf_llm.tasks.classification import ClassificationTask
from deepmlf_llm.tasks.registry import task_of

_HEARD = (("A", "audio"), ("V", "vision"))


def label_problems(config: Any) -> list[str]:
    """What is wrong with ``dataset``, ``task``, ``num_outputs`` and ``unimodal_targets`` together, one phrase each."""
    targets = config.unimodal_targets
    if not isinstance(targets, list) or targets != [suffix for suffix in "TAV" if suffix in targets]:
        return [f"unimodal_targets={brief(targets)}: expected a list of some of T, A, V, in this order"]
    problems = [
        f"unimodal_targets={targets}: there is no modality {name!r}"
        for name in own_heads(targets)
        if name not in config.modalities
    ]
    if not isinstance(config.dataset, str):
        return problems
    try:
        task = task_of(config.dataset, config.task)
    except ConfigError as error:
        return [*problems, str(error)]
    if isinstance(task, ClassificationTask):
        if targets:
            problems.append(f"unimodal_targets={targets}: labels of one modality alone are numbers of a scale")
        scales = config.readout != "heads" or config.objective.lambda_polarity or config.objective.lambda_prototypes
        if scales:
            problems.append(
                "readout, objective.lambda_polarity and objective.lambda_prototypes are for labels of a scale"
            )
        if not task.classes:
            problems.append(f"dataset={config.dataset!r}: its classes are in the data; task must name them")
        elif config.num_outputs != task.num_outputs:
            problems.append(f"num_outputs={brief(config.num_outputs)}: there are {task.num_outputs} classes")
    return problems


def outputs_of(dataset: Any, task: Any, given: Any) -> Any:
    """``num_outputs``: what is given, and of classes, where that is only the default, one each."""
    if given != 1 or isinstance(given, bool) or not isinstance(dataset, str) or not isinstance(task, dict):
        return given
    try:
        return task_of(dataset, task).num_outputs or given
    except ConfigError:
        return given  # which label_problems names


def unimodal_terms(targets: Sequence[str]) -> dict[str, str]:
    """Term of the loss -> the label of one modality alone that it is of, "T", "A" or "V"."""
    terms = {"text": "T"} if "T" in targets else {}
    heard = {name: suffix for suffix, name in _HEARD if suffix in targets}
    if len(heard) == 1:
        heard = {"av": next(iter(heard.values()))}
    return terms | heard


def own_heads(targets: Sequence[str]) -> list[str]:
    """Modalities that have a head of their own: both, where both have labels of their own."""
    return [term for term in unimodal_terms(targets) if term not in ("text", "av")]
