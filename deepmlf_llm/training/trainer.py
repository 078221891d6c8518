"""A Trainer for DeepMLF: transformers' own, with what this method needs said in few places.

Groups with their own learning rates; losses weighted so that accumulated batches and several processes give exactly the
gradient of one large batch; parts of the loss logged apart; evaluation that keeps predictions only; checkpoints that
hold trainable weights only and survive a kill.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import TrainOutput

from deepmlf_llm.config.labels import unimodal_terms
from deepmlf_llm.data.unimodal import KEY as UNIMODAL
from deepmlf_llm.errors import DataError, RunError
from deepmlf_llm.training.augmentation import Augmentation
from deepmlf_llm.training.batching import INDEX, BalancedBatches, CollatedWithIndex, Indexed, LongestFirst
from deepmlf_llm.training.callbacks import RunIsOver
from deepmlf_llm.training.checkpoint_trainer import CheckpointingTrainer
from deepmlf_llm.training.faults import Faults
from deepmlf_llm.training.finite import (
    FiniteSteps,
    broken_inputs,
    check_predictions,
    gradients_by_group,
    is_finite_norm,
    name_of,
    said_by_all,
    some,
)
from deepmlf_llm.training.gradients import (
    AV_GROUP,
    BEHIND_ZERO,
    FirstGradients,
    average_running_statistics,
    running_statistics,
)
from deepmlf_llm.training.head_metrics import heads_of, said_by_heads
from deepmlf_llm.training.losses import LossWindow, logged_parts, step_counts
from deepmlf_llm.training.schedule import Schedule
from deepmlf_llm.training.trusted import tensors_only
from deepmlf_llm.training.watch import PeerWatch


class DeepMLFTrainer(CheckpointingTrainer):
    """Trains a :class:`~deepmlf_llm.model.DeepMLFModel`.

    Args:
        batches: batches of this process; None where only evaluation is wanted.
        augmentation: what batches lose in training; None: nothing.
        group_settings: group of :meth:`DeepMLFModel.parameter_groups` -> ``lr`` and ``weight_decay`` that differ from
            the arguments' own.
        stop_asked: whether this process was asked to stop; looked at before each step, agreed on by all processes.
        save_every: minutes between checkpoints, beside those of the arguments' schedule.
        most_skipped: steps that may be left out because they are not finite.
        watch: looks whether the other processes live; told of progress.
        faults: what is simulated.
        seeds_steps: as for :class:`~deepmlf_llm.training.schedule.Schedule`.
        others: as in :class:`CheckpointingTrainer` and ``transformers.Trainer``.
    """

    def __init__(
        self,
        *args: Any,
        batches: BalancedBatches | None = None,
        augmentation: Augmentation | None = None,
        group_settings: Mapping[str, Mapping[str, float]] | None = None,
        stop_asked: Callable[[], bool] = lambda: False,
        save_every: float | None = None,
        most_skipped: int = 0,
        watch: PeerWatch | None = None,
        faults: Faults | None = None,
        seeds_steps: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, faults=faults, **kwargs)
        self.watch, self.save_every = watch, save_every
        self._saved_at = time.monotonic()
        self.batches = batches
        self.augmentation = augmentation
        self.stop_asked = stop_asked
        self.group_settings = group_settings or {}
        self.model_accepts_loss_kwargs = True  # compute_loss weighs the batches of a step itself
        self.window = LossWindow(self.args.device)
        self.first_gradients: FirstGradients | None = None
        self.finite = FiniteSteps(self.train_dataset, self.modalities, most_skipped)
        self._skipped: str | None = None  # why DeepSpeed's update of this step is left out
        self._held_back: list[tuple[Any, Tensor | None]] = []
        self._statistics: list[tuple[Tensor, Tensor]] = []  # buffers, and what they were before the step
        self.schedule: Schedule | None = None
        self._evaluated: Any = None
        self.predicted: tuple[dict[str, np.ndarray], np.ndarray] = ({}, np.empty(0))  # by the last evaluation
        if batches is not None:
            self.schedule = Schedule(batches, self.args.gradient_accumulation_steps, self._restore, seeds_steps)
            self.add_callback(self.schedule)
        compute = kwargs.get("compute_metrics")
        self.split_metrics: Any = compute
        if compute is not None:
            self.compute_metrics = self._of_finite_predictions(compute)

    # ---- data ----

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of this process, made by :class:`BalancedBatches`; accelerate must not deal them out again."""
        if self.batches is None:
            raise RunError("this trainer was made for evaluation: it has no training batches")
        return DataLoader(
            Indexed(self.train_dataset),
            batch_sampler=self.batches,
            collate_fn=CollatedWithIndex(self.data_collator),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )

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

    # ---- optimizer ----

    def create_optimizer(self, *_: Any, **__: Any) -> torch.optim.Optimizer:
        """One group per role and decay: norms, biases and gates (what has one dimension or none) are not decayed."""
        if self.optimizer is None:  # type: ignore[has-type]
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            optimizer = optimizer_class(self.optimizer_groups(), **options)
            optimizer.register_step_pre_hook(self._before_update)
            optimizer.register_step_post_hook(self._after_update)
            self.optimizer = optimizer
        return self.optimizer

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """Parameter groups, named ``role/decayed`` and ``role/kept``."""
        groups = []
        for role, members in self.model.parameter_groups().items():
            settings = {"lr": self.args.learning_rate, "weight_decay": self.args.weight_decay}
            settings.update(self.group_settings.get(role, {}))
            decayed = [p for _, p in members if _dimensions(p) > 1]
            kept = [p for _, p in members if _dimensions(p) <= 1]
            if decayed:
                groups.append({"params": decayed, **settings, "name": f"{role}/decayed"})
            if kept:
                groups.append({"params": kept, **settings, "weight_decay": 0.0, "name": f"{role}/kept"})
        return groups

    # ---- loss ----

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trains, watching the first gradients (see :class:`FirstGradients`)."""
        waits = {AV_GROUP: BEHIND_ZERO} if self.model.deepmlf_config.objective.lambda_av == 0 else {}
        self.first_gradients = FirstGradients(self.model.parameter_groups(), waits)
        try:
            with tensors_only(kwargs.get("resume_from_checkpoint")):
                return super().train(*args, **kwargs)
        except RunIsOver:  # resumed at its very end
            self.is_in_train = False
            self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)  # type: ignore[has-type]
            return TrainOutput(self.state.global_step, math.nan, {})

    def _get_num_items_in_batch(self, batch_samples: list[Mapping[str, Tensor]], device: Any) -> Any:
        """What the terms of the loss are means over, in all batches of this step on all processes (see losses.py).

        Before they are counted, the batches lose what :class:`Augmentation` takes; the step trains on this very list.

        Raises:
            DataError: a feature or label of the step is not finite.
        """
        if not batch_samples:
            return None
        self._look_ahead(batch_samples)
        if self.augmentation is not None and self.batches is not None:
            batch_samples[:] = [self.augmentation(batch, self.batches.epoch) for batch in batch_samples]
        return self._step_counts(batch_samples, device)

    def _step_counts(self, batch_samples: Sequence[Mapping[str, Tensor]], device: Any) -> dict[str, Tensor]:
        terms = unimodal_terms(self.model.deepmlf_config.unimodal_targets)
        return step_counts(batch_samples, self.modalities, device, self.args.world_size, terms)

    def _look_ahead(self, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """What all processes agree on before a step: whether its inputs are finite, whether to stop after it."""
        broken = [
            f"{name} of {name_of(self.train_dataset, int(batch[INDEX][row]))}"
            for batch in batches
            for row, name in broken_inputs(batch, self.modalities)
        ]
        any_broken, any_stop, save = self._of_any_process(bool(broken), self.stop_asked(), self._is_due())
        if any_broken:
            raise DataError(
                f"step {self.state.global_step + 1}: values that are not finite, in {some(said_by_all(broken))}; fix "
                "these utterances or leave them out"
            )
        if self.schedule is not None:
            self.schedule.stop_asked |= any_stop
            self.schedule.save_asked |= save

    def _is_due(self) -> bool:
        """Whether minutes ask for a checkpoint, by the clock of the first process."""
        if self.save_every is None or not self.is_world_process_zero():
            return False
        return time.monotonic() - self._saved_at >= 60 * self.save_every

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self._saved_at = time.monotonic()

    def stops(self) -> bool:
        """After training, on every process: whether any was asked to stop, after the last step too."""
        return self._of_any_process(self.stop_asked())[0]

    def _of_any_process(self, *flags: bool) -> list[bool]:
        if self.args.world_size == 1:
            return list(flags)
        values = torch.tensor([float(flag) for flag in flags], device=self.args.device)
        torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX)
        return [value > 0 for value in values.tolist()]

    @property
    def modalities(self) -> list[str]:
        return list(self.model.deepmlf_config.modalities)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: dict[str, Tensor] | None = None,
    ) -> Any:
        """The model's own loss; in training, this batch's part of the step's."""
        indices = inputs.pop(INDEX, None)
        outputs = model(**inputs, loss_counts=num_items_in_batch if model.training else None)
        if model.training and self.faults is not None and self.faults.poisoned:
            poison(outputs)
        loss = outputs.loss
        if num_items_in_batch is not None and model.training:
            self.window.add(logged_parts(loss, outputs.losses))
            self.finite.saw(outputs.losses, outputs, [] if indices is None else indices.tolist())
            if self.first_gradients is not None:
                self.first_gradients.saw_batch(inputs[f"{name}_mask"] for name in self.modalities)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One batch; after the last of a step, loss and gradients are checked, before the update.

        Raises:
            RunError, DataError: not finite, or a group of weights without a gradient.
        """
        if self.watch is not None:
            self.watch.progress(self.state.global_step)
        self._remember_statistics()
        loss = super().training_step(*args, **kwargs)
        if not self.accelerator.sync_gradients:
            return loss
        step = self.state.global_step + 1
        if self.is_deepspeed_enabled:  # which has made the update, or left it out where the gradient was not finite
            skipped = self._skipped or self._check_finite(self.deepspeed.get_global_grad_norm())
            self._skipped = None
        else:
            skipped = self.finite.check(step, self.model, gradients_by_group(self.optimizer.param_groups))
        self.window.end_step(counts=skipped is None)
        if skipped is not None:
            self._leave_out(skipped)
            loss = torch.zeros_like(loss)
        elif self.first_gradients is not None:
            self.first_gradients.check(step)
        self._statistics = []
        return loss

    def _before_update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Inside the optimizer's step; under DeepSpeed the only place between gradient and update."""
        if not self.is_deepspeed_enabled:
            return
        found = self._check_finite(getattr(self.deepspeed.optimizer, "_global_grad_norm", None))
        self._skipped = self._skipped or found
        if self._skipped is not None:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            self._held_back = [(parameter, parameter.grad) for parameter in parameters]
            for parameter in parameters:
                parameter.grad = None

    def _after_update(self, *_: Any) -> None:
        """Gives gradients back that were held back: DeepSpeed adds up the next ones in the same memory."""
        for parameter, gradient in self._held_back:
            parameter.grad = gradient
        self._held_back = []

    def _check_finite(self, norm: Any) -> str | None:
        gradients = {"the weights": torch.tensor(is_finite_norm(norm))}
        return self.finite.check(self.state.global_step + 1, self.model, gradients)

    def _remember_statistics(self) -> None:
        """Running statistics as they are before the step, which one that is left out must not have changed."""
        if self.finite.most_skipped and not self._statistics:
            live = (buffer for module in self.model.modules() for buffer in running_statistics(module))
            self._statistics = [(buffer, buffer.clone()) for buffer in live]

    def _leave_out(self, reason: str) -> None:
        """The optimizer finds no gradient, and changes neither weights nor its own state."""
        if self.is_world_process_zero():
            print(reason, flush=True)
        if not self.is_deepspeed_enabled:
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        for buffer, before in self._statistics:
            buffer.copy_(before)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the parts of the loss, means over the steps since the last line and over all processes."""
        if "loss" in logs:
            logs.update(self.window.drain() or {"loss": math.nan})
        super().log(logs, start_time)

    # ---- evaluation ----

    @property
    def heads(self) -> tuple[str, ...]:
        """The outputs that an evaluation keeps, the prediction first."""
        return heads_of(self.model.deepmlf_config)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in Trainer; all processes evaluate the same BatchNorm statistics.

        Raises:
            DataError, RunError: predictions that are not finite.
        """
        average_running_statistics(self.model)
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


def poison(outputs: Any) -> None:
    """Makes a part of a batch's loss, and what its first utterance is predicted, not finite: a simulated fault."""
    outputs.loss = outputs.loss * torch.nan
    part = next(iter(outputs.losses))
    outputs.losses = {**outputs.losses, part: outputs.losses[part].detach() * torch.nan}
    first = torch.zeros(len(outputs.polarity), dtype=torch.bool, device=outputs.polarity.device)
    first[0] = True
    outputs.polarity = torch.where(first.reshape(-1, *[1] * (outputs.polarity.dim() - 1)), torch.nan, outputs.polarity)


def _dimensions(parameter: nn.Parameter) -> int:
    return len(getattr(parameter, "ds_shape", parameter.shape))  # ZeRO-3 shows a flat piece
