"""The update of a step in a trainer: groups of weights, and whether loss and gradients are finite before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deepmlf_llm.training.evaluating_trainer import EvaluatingTrainer
from deepmlf_llm.training.finite import FiniteSteps, gradients_by_group, is_finite_norm
from deepmlf_llm.training.gradients import FirstGradients, average_running_statistics, running_statistics
from deepmlf_llm.training.losses import LossWindow


class GuardedTrainer(EvaluatingTrainer):
    """A step that is not finite ends the run, or is left out: then it changes neither weights nor the optimizer.

    Args:
        group_settings: group of :meth:`DeepMLFModel.parameter_groups` -> ``lr`` and ``weight_decay`` that differ from
            the arguments' own.
        most_skipped: steps that may be left out because they are not finite.
        others: as in :class:`EvaluatingTrainer`.
    """

    def __init__(
        self,
        *args: Any,
        group_settings: Mapping[str, Mapping[str, float]] | None = None,
        most_skipped: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.group_settings = group_settings or {}
        self.window = LossWindow(self.args.device)
        self.first_gradients: FirstGradients | None = None
        self.finite = FiniteSteps(self.train_dataset, self.modalities, most_skipped)
        self._skipped: str | None = None  # why DeepSpeed's update of this step is left out
        self._held_back: list[tuple[Any, Tensor | None]] = []
        self._statistics: list[tuple[Tensor, Tensor]] = []  # buffers, and what they were before the step

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
        average_running_statistics(self.model)
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


def _dimensions(parameter: nn.Parameter) -> int:
    return len(getattr(parameter, "ds_shape", parameter.shape))  # ZeRO-3 shows a flat piece
