"""Evaluation in a trainer: longest texts first, finite predictions of every head, nothing else kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepmlf_llm.data.unimodal import KEY as UNIMODAL
from deepmlf_llm.training.batching import LongestFirst
from deepmlf_llm.training.checkpoint_trainer import CheckpointingTrainer
from deepmlf_llm.training.finite import check_predictions
from deepmlf_llm.training.head_metrics import heads_of, said_by_heads
from deepmlf_llm.training.watch import PeerWatch


class EvaluatingTrainer(CheckpointingTrainer):
    """Evaluates a :class:`~deepmlf_llm.model.DeepMLFModel`.

    Args:
        watch: looks whether the other processes live; is given the progress.
        others: as in :class:`CheckpointingTrainer` and ``transformers.Trainer``.
    """

    def __init__(self, *args: Any, watch: PeerWatch | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.watch = watch
        self._evaluated: Any = None
        self.predicted: tuple[dict[str, np.ndarray], np.ndarray] = ({}, np.empty(0))  # by the last evaluation
        compute = kwargs.get("compute_metrics")
        self.split_metrics: Any = compute
        if compute is not None:
            self.compute_metrics = self._of_finite_predictions(compute)

    @property
    def modalities(self) -> list[str]:
        return list(self.model.deepmlf_config.modalities)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return LongestFirst(getattr(eval_dataset, "lengths", range(len(eval_dataset))))

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: list[str] = []  # the collator picks what the model reads

    def _prepare_input(self, data: Any) -> Any:
        """Moves tensors to the device, and leaves their dtype: DeepSpeed's would round labels to bf16."""
        if isinstance(data, Tensor):
            return data.to(self.args.device, non_blocking=True)
        if isinstance(data, Mapping):
            return {name: self._prepare_input(value) for name, value in data.items()}
        return super()._prepare_input(data)

    @property
    def heads(self) -> tuple[str, ...]:
        """The outputs that an evaluation keeps, the prediction first."""
        return heads_of(self.model.deepmlf_config)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in Trainer.

        Raises:
            DataError, RunError: predictions that are not finite.
        """
        self._evaluated = self.eval_dataset if eval_dataset is None else eval_dataset
        return super().evaluate(eval_dataset, *args, **kwargs)

    def _of_finite_predictions(self, compute: Callable[[Any], dict[str, float]]) -> Callable[[Any], dict[str, float]]:
        def checked(evaluated: Any) -> dict[str, float]:
            order = list(self._get_eval_sampler(self._evaluated))
            check_predictions(evaluated.predictions, self._evaluated, order, self.modalities)
            back = np.argsort(order)  # from the order of evaluation to that of the data
            heads = {head: values[back] for head, values in zip(self.heads, evaluated.predictions, strict=True)}
            labels = evaluated.label_ids
            self.predicted = heads, (labels[0] if isinstance(labels, tuple) else labels)[back]
            return compute(evaluated)

        return checked

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, Any, Any]:
        """Loss, what each head says [b], labels: nothing else is kept."""
        if self.watch is not None:
            self.watch.progress(self.state.global_step)
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs)
        polarities = said_by_heads(outputs, self.heads)
        loss = None if outputs.loss is None else outputs.loss.detach()
        labels = [inputs[name] for name in ("labels", UNIMODAL) if name in inputs]
        return loss, polarities, labels[0] if len(labels) == 1 else tuple(labels) or None
