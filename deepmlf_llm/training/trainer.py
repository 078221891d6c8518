"""A Trainer for DeepMLF: transformers' own, with what this method needs said in few places.

Groups with their own learning rates; losses weighted so that accumulated batches and several processes give exactly the
gradient of one large batch; parts of the loss logged apart; evaluation that keeps predictions only; checkpoints that
hold trainable weights only and survive a kill.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, set_seed
from transformers.trainer_utils import IntervalStrategy, TrainOutput

from deepmlf_llm.errors import RunError
from deepmlf_llm.tasks.metrics import METRIC_DEFINITIONS, polarity_metrics
from deepmlf_llm.training import checkpoints
from deepmlf_llm.training.batching import BalancedBatches, LongestFirst
from deepmlf_llm.training.callbacks import RunIsOver
from deepmlf_llm.training.gradients import FirstGradients, average_running_statistics
from deepmlf_llm.training.launch import wait_for_everyone
from deepmlf_llm.training.losses import LossWindow, logged_parts, step_counts

HEADS = ("polarity", "fusion_polarity", "text_polarity", "av_polarity")


class DeepMLFTrainer(Trainer):
    """Trains a :class:`~deepmlf_llm.model.DeepMLFModel`.

    Args:
        batches: batches of this process; None where only evaluation is wanted.
        group_settings: group of :meth:`DeepMLFModel.parameter_groups` -> ``lr`` and ``weight_decay`` that differ from
            the arguments' own.
        keep_checkpoints: beside the best one; None keeps all.
        others: as in ``transformers.Trainer``.
    """

    def __init__(
        self,
        *args: Any,
        batches: BalancedBatches | None = None,
        group_settings: Mapping[str, Mapping[str, float]] | None = None,
        keep_checkpoints: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.batches = batches
        self.group_settings = group_settings or {}
        self.keep_checkpoints = keep_checkpoints
        self.model_accepts_loss_kwargs = True  # compute_loss weighs the batches of a step itself
        self.window = LossWindow(self.args.device)
        self.first_gradients: FirstGradients | None = None
        if batches is not None:
            self.add_callback(_Epochs(batches, self.args.gradient_accumulation_steps))

    # ---- data ----

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches of this process, made by :class:`BalancedBatches`; accelerate must not deal them out again."""
        if self.batches is None:
            raise RunError("this trainer was made for evaluation: it has no training batches")
        return DataLoader(
            self.train_dataset,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
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

    # ---- optimiser ----

    def create_optimizer(self, *_: Any, **__: Any) -> torch.optim.Optimizer:
        """One group per role and decay: norms, biases and gates (what has one dimension or none) are not decayed."""
        if self.optimizer is None:  # type: ignore[has-type]
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer_class(self.optimizer_groups(), **options)
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
        self.first_gradients = FirstGradients(self.model.parameter_groups())
        try:
            return super().train(*args, **kwargs)
        except RunIsOver:  # resumed at its very end
            self.is_in_train = False
            self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)  # type: ignore[has-type]
            return TrainOutput(self.state.global_step, math.nan, {})

    def _get_num_items_in_batch(self, batch_samples: Sequence[Mapping[str, Tensor]], device: Any) -> Any:
        """What the terms of the loss are means over, in all batches of this step on all processes (see losses.py)."""
        if not batch_samples:
            return None
        return step_counts(batch_samples, self.modalities, device, self.args.world_size)

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
        outputs = model(**inputs, loss_counts=num_items_in_batch if model.training else None)
        loss = outputs.loss
        if num_items_in_batch is not None and model.training:
            self.window.add(logged_parts(loss, outputs.losses))
            if self.first_gradients is not None:
                self.first_gradients.saw_batch(inputs[f"{name}_mask"] for name in self.modalities)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One batch; after the last of a step, the first gradients are checked."""
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            self.window.steps += 1
            if self.first_gradients is not None:
                self.first_gradients.check(self.state.global_step + 1)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the parts of the loss, means over the steps since the last line and over all processes.

        Raises:
            RunError: the loss is not finite.
        """
        if "loss" in logs:
            logs.update(self.window.drain())
            if not math.isfinite(logs["loss"]):
                raise RunError(
                    f"step {self.state.global_step}: the loss is {logs['loss']}: the run diverged; lower learning_rate"
                )
        super().log(logs, start_time)

    # ---- evaluation ----

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in Trainer; all processes evaluate the same BatchNorm statistics."""
        average_running_statistics(self.model)
        return super().evaluate(*args, **kwargs)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, Any, Tensor | None]:
        """Loss, the four polarities [b] each, labels: nothing else is kept."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs)
        polarities = tuple(getattr(outputs, head).float() for head in HEADS)
        loss = None if outputs.loss is None else outputs.loss.detach()
        return loss, polarities, inputs.get("labels")

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """A new best model is always saved, whatever the saving schedule says."""
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best:
            self.state.best_global_step = self.state.global_step
            self.control.should_save = True
        return is_best

    def load_best(self) -> None:
        """Puts the weights of the best evaluation into the model.

        Raises:
            RunError: no evaluation gave a value to select by.
        """
        if self.state.best_global_step is None:
            raise RunError(
                f"no evaluation gave a value of {self.args.metric_for_best_model}: the predictions are constant"
            )
        best = Path(self.args.output_dir) / f"checkpoint-{self.state.best_global_step}"
        self.state.best_model_checkpoint = str(best)
        self._load_best_model()

    # ---- checkpoints ----

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        directory = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if checkpoints.flaw(directory) is None:
            return  # the schedule and a new best asked for the same one
        average_running_statistics(self.model)
        if self.args.should_save:
            checkpoints.remove(directory)
        wait_for_everyone()
        with checkpoints.being_written(directory):
            super()._save_checkpoint(model, trial)
            wait_for_everyone()
            if self.args.should_save:
                checkpoints.commit(directory, {"step": self.state.global_step, "processes": self.args.world_size})
        if self.args.should_save:
            checkpoints.prune(directory.parent, self.keep_checkpoints, self.state.best_global_step)
        wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """The adapter only: no tokenizer, no pickled arguments."""
        if self.args.should_save:
            self.model.save_pretrained(output_dir or self.args.output_dir, state_dict=state_dict)


class _Epochs(TrainerCallback):
    """Tells the batches which epoch begins; a window of the log never straddles a checkpoint."""

    def __init__(self, batches: BalancedBatches, accumulated: int) -> None:
        self.batches = batches
        self.steps = -(-len(batches) // accumulated)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        set_seed(args.seed + args.process_index)  # weights are made with one seed everywhere, dropout is not

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            raise RunIsOver
        self.batches.set_epoch(state.global_step // self.steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step >= state.max_steps and args.eval_strategy != IntervalStrategy.EPOCH:
            control.should_evaluate = True  # what the last steps brought is looked at too
        return self._close_window(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        return self._close_window(control)

    @staticmethod
    def _close_window(control: Any) -> Any:
        control.should_log |= control.should_save or control.should_evaluate
        return control


def _dimensions(parameter: nn.Parameter) -> int:
    return len(getattr(parameter, "ds_shape", parameter.shape))  # ZeRO-3 shows a flat piece


def compute_metrics_for(dataset: str) -> Any:
    """What Trainer calls after an evaluation: the data set's metrics of the prediction, and of each other head."""

    def compute(evaluated: Any) -> dict[str, float]:
        labels = evaluated.label_ids
        by_head = dict(zip(HEADS, evaluated.predictions, strict=True))
        metrics = polarity_metrics(by_head.pop("polarity"), labels, dataset)
        for head, predictions in by_head.items():
            own = polarity_metrics(predictions, labels, dataset)
            metrics |= {f"{head}/{name}": value for name, value in own.items()}
        return metrics

    return compute


def split_metrics(logged: Mapping[str, float], prefix: str) -> dict[str, dict[str, Any]]:
    """``{"metrics": of the prediction, "heads": {"text": {...}, ...}}`` from what ``evaluate`` returned."""
    metrics: dict[str, float] = {}
    heads: dict[str, dict[str, float]] = {}
    for key, value in logged.items():
        name = key.removeprefix(f"{prefix}_")
        head, slash, metric = name.rpartition("/")
        if slash:
            heads.setdefault(head.removesuffix("_polarity"), {})[metric] = value
        elif name in METRIC_DEFINITIONS:
            metrics[name] = value
    return {"metrics": metrics, "heads": heads}
