"""Starting from an adapter: its weights, by name and shape; everything else as the run is configured."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import set_peft_model_state_dict
from torch import Tensor

from deepmlf_llm.adapters import files
from deepmlf_llm.adapters.compatibility import adapter_tensors
from deepmlf_llm.adapters.hub import local_directory
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.data.facts import feature_problems
from deepmlf_llm.errors import AdapterError, Problems
from deepmlf_llm.tasks.registry import Task, task_of
from deepmlf_llm.tasks.regression import RegressionTask
from deepmlf_llm.training.keys import RENAMED, all_keys

INSIDE = "adapter"
_LM_LORA = (".lora_A.", ".lora_B.")
_STACK = ".deepmlf."


@dataclass
class StartingAdapter:
    """An adapter whose weights a run begins with.

    Args:
        name: as given.
        config: of the adapter.
        tensors: of it, by the keys of its file.
    """

    name: str
    config: DeepMLFConfig
    tensors: dict[str, Tensor]

    def put_into(self, model: Any) -> list[str]:
        """Loads the weights, all of them or none; the same on every process, before an engine splits the model.

        Args:
            model: a new :class:`~deepmlf_llm.model.DeepMLFModel`.

        Returns:
            What a user may want to know, a sentence each.

        Raises:
            AdapterError: another base model, or tensors that do not fit, by name; which settings differ.
        """
        files.check_base(self.config, model.get_base_model(), self._source)
        expected = adapter_tensors(model, "default")
        # LoRA on the LM begins as no change at all, so an adapter without it may get it now.
        fresh = {key for key in expected.keys() - self.tensors.keys() if _is_lm_lora(key)}
        other = self._other_settings(model.deepmlf_config)
        try:
            files.check_tensors(
                self.tensors, {key: value for key, value in expected.items() if key not in fresh}, self._source
            )
        except AdapterError as error:
            hint = f"; it was trained with other settings: {', '.join(other)}" if other else ""
            raise AdapterError(f"{error}{hint}") from None
        set_peft_model_state_dict(model, self.tensors)
        notes = [f"weights from {self.name}" + (", fresh LoRA on the LM" if fresh else "")]
        return notes + ([f"which was trained with {', '.join(other)}"] if other else [])

    @property
    def digest(self) -> str | None:
        """sha256 of its weights."""
        return self.config.weights_sha256

    def check(self, config: DeepMLFConfig) -> list[str]:
        """Whether the adapter reads what the run has.

        Args:
            config: of the run, its modalities with what is known of how the features were made.

        Returns:
            What differs without harm, a sentence each.

        Raises:
            AdapterError: another set of modalities, other dimensions, or features made in another way.
        """
        self.check_task(task_of(config.dataset, config.task))
        trained, problems = self.config.modalities, Problems(AdapterError, self._source)
        modalities = {name: dataclasses.asdict(facts) for name, facts in config.modalities.items()}
        problems.messages += [f"the data: {problem}" for problem in feature_problems(trained, modalities)]
        for name in modalities.keys() - trained.keys():
            known = ", ".join(trained) or "text alone"
            problems.check(False, f"the adapter has no {name!r}, it reads {known}; choose with modalities=...")
        problems.raise_if_any()
        return [
            f"{name} is standardised by these data's own training split, not as for {self.name}"
            for name, facts in trained.items()
            if facts.standardisation and modalities[name].get("standardisation") != facts.standardisation
        ]

    def check_task(self, task: Task) -> None:
        """Whether the adapter's heads say what the run's labels mean: any scale will do for another, classes are those.

        Raises:
            AdapterError: numbers and classes, or other classes.
        """
        known = task_of(self.config.dataset, self.config.task)
        scales = isinstance(known, RegressionTask) and isinstance(task, RegressionTask)
        if not scales and (differs := task.differences(known)):
            raise AdapterError(f"{self._source}: the data have labels of {differs}, which the adapter was trained on")

    @property
    def _source(self) -> str:
        return f"init_from={self.name}"

    def _other_settings(self, config: DeepMLFConfig) -> list[str]:
        """Settings of the method that differ, with both values."""
        found = []
        for name, key in all_keys().items():
            if key.owner == "method" and (name != "target_modules" or (self.config.has_lm_lora and config.has_lm_lora)):
                there, here = (_value(c, RENAMED.get(name, name)) for c in (self.config, config))
                if there != here:
                    found.append(f"{name}={there!r} (here {here!r})")
        return found


def _is_lm_lora(key: str) -> bool:
    return _STACK not in key and any(part in f".{key}." for part in _LM_LORA)


def _value(config: DeepMLFConfig, path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name, None)
    return sorted(value) if isinstance(value, set) else list(value) if isinstance(value, tuple) else value


def read_start(name: str) -> StartingAdapter:
    """The adapter of ``init_from``: its directory, a run that has one, or a hub id; verified as for any other use.

    Raises:
        AdapterError: not there, damaged, or a merged model.
    """
    path = Path(name).expanduser()
    try:
        directory = local_directory(path if path.is_dir() else name)
        if not (directory / files.CONFIG).is_file() and (directory / INSIDE / files.CONFIG).is_file():
            directory = directory / INSIDE
        config, tensors = files.read_adapter(directory)
    except AdapterError as error:
        raise AdapterError(f"init_from={name}: {error}") from None
    return StartingAdapter(name, config, tensors)
