"""A Trainer for DeepMLF: transformers' own, with what this method needs said in few places.

Losses weighted so that accumulated batches and several processes give exactly the gradient of one large batch; parts of
the loss logged apart. What it is built on: checkpoints that hold trainable weights only and survive a kill
(:mod:`.checkpoint_trainer`), evaluation that keeps predictions only (:mod:`.evaluating_trainer`), groups with their own
learning rates and steps that are checked before their update (:mod:`.guarded_trainer`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import TrainOutput

from deepmlf_llm.config.labels import unimodal_terms
from deepmlf_llm.errors import DataError, RunError
from deepmlf_llm.training.augmentation import Augmentation
from deepmlf_llm.training.batching import INDEX, BalancedBatches, CollatedWithIndex, Indexed
from deepmlf_llm.training.callbacks import RunIsOver
from deepmlf_llm.training.faults import poison
from deepmlf_llm.training.finite import broken_inputs, name_of, said_by_all, some
from deepmlf_llm.training.gradients import AV_GROUP, BEHIND_ZERO, FirstGradients
from deepmlf_llm.training.guarded_trainer import GuardedTrainer
from deepmlf_llm.training.losses import logged_parts, step_counts
from deepmlf_llm.training.schedule import Schedule
from deepmlf_llm.training.trusted import tensors_only


class DeepMLFTrainer(GuardedTrainer):
    """Trains a :class:`~deepmlf_llm.model.DeepMLFModel`.

    Args:
        batches: batches of this process; None where only evaluation is wanted.
        augmentation: what batches lose in training; None: nothing.
        stop_asked: whether this process was asked to stop; looked at before each step, agreed on by all processes.
        save_every: minutes between checkpoints, beside those of the arguments' schedule.
        seeds_steps: as for :class:`~deepmlf_llm.training.schedule.Schedule`.
        others: as in :class:`~deepmlf_llm.training.guarded_trainer.GuardedTrainer` and the trainers below it.
    """

    def __init__(
        self,
        *args: Any,
        batches: BalancedBatches | None = None,
        augmentation: Augmentation | None = None,
        stop_asked: Callable[[], bool] = lambda: False,
        save_every: float | None = None,
        seeds_steps: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.save_every = save_every
        self._saved_at = time.monotonic()
        self.batches = batches
        self.augmentation = augmentation
        self.stop_asked = stop_asked
        self.model_accepts_loss_kwargs = True  # compute_loss weighs the batches of a step itself
        self.schedule: Schedule | None = None
        if batches is not None:
            self.schedule = Schedule(batches, self.args.gradient_accumulation_steps, self._restore, seeds_steps)
            self.add_callback(self.schedule)

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

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the parts of the loss, means over the steps since the last line and over all processes."""
        if "loss" in logs:
            logs.update(self.window.drain() or {"loss": math.nan})
        super().log(logs, start_time)
