"""Training of a small regressor by transformers' Trainer: selection on validation, the test split once, at the end."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from deepmlf_llm.baselines.settings import BaselineSettings
from deepmlf_llm.errors import RunError
from deepmlf_llm.tasks.metrics import polarity_metrics
from deepmlf_llm.tasks.registry import Task
from deepmlf_llm.training.callbacks import EarlyStopping
from deepmlf_llm.training.evaluation import loop_arguments
from deepmlf_llm.training.launch import on_terminal
from deepmlf_llm.training.progress import show_progress


@dataclass(frozen=True)
class Fitted:
    """What a training gave: predictions of validation and test [n], and facts of it."""

    predictions: Mapping[str, NDArray[np.float32]]
    facts: Mapping[str, Any]


class _Best(TrainerCallback):
    """Keeps a copy of the trained weights of the best evaluation."""

    def __init__(self) -> None:
        self.mae, self.step = float("inf"), 0
        self.weights: dict[str, Tensor] = {}

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, model: Any = None, **_: Any
    ) -> None:
        if metrics["eval_mae"] < self.mae:
            self.mae, self.step = metrics["eval_mae"], state.global_step
            self.weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def restore(self, model: nn.Module) -> None:
        """Puts them back."""
        if not self.weights:
            raise RunError("no evaluation gave a finite MAE: the training diverged; lower --learning_rate")
        own = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in self.weights.items():
                own[name].copy_(value)


def fit(
    make: Callable[[], nn.Module],
    splits: Mapping[str, Any],
    collate: Callable[[Sequence[Any]], dict[str, Tensor]],
    dataset: str | Task,
    settings: BaselineSettings,
) -> Fitted:
    """Trains, restores the best epoch by validation MAE, predicts validation and test.

    Args:
        make: builds the model; its ``forward`` gives ``polarity`` [b], and ``loss`` where there are labels.
        splits: "train", "valid", "test" -> data set.
        collate: items -> batch with ``labels`` [b].
        dataset: label rule.
        settings: rate, epochs, patience, seed.

    Raises:
        RunError: the training diverged.
    """
    set_seed(settings.seed)
    model, best = make(), _Best()
    with tempfile.TemporaryDirectory() as nowhere:
        trainer = Trainer(
            model=model,
            args=_arguments(nowhere, settings),
            train_dataset=splits["train"],
            eval_dataset=splits["valid"],
            data_collator=collate,
            compute_metrics=lambda found: polarity_metrics(found.predictions, found.label_ids, dataset),
            callbacks=[best, EarlyStopping("mae", False, settings.early_stopping_patience)],
        )
        show_progress(trainer, bar=on_terminal())
        output = trainer.train()
        best.restore(model)
        predictions = {name: _predict(trainer, splits[name]) for name in ("valid", "test")}
    trained = [p for p in model.parameters() if p.requires_grad]
    facts = {
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "best_step": best.step,
        "seconds": round(output.metrics.get("train_runtime", 0.0), 1),
        "parameters": {
            "trainable": sum(p.numel() for p in trained),
            "total": sum(p.numel() for p in model.parameters()),
        },
    }
    return Fitted(predictions, facts)


def _predict(trainer: Trainer, split: Any) -> NDArray[np.float32]:
    """Polarity of each utterance, in the order of the split."""
    loop = trainer.evaluation_loop(trainer.get_test_dataloader(split), "prediction", prediction_loss_only=False)
    return np.asarray(loop.predictions, np.float32)


def _arguments(directory: str, settings: BaselineSettings) -> TrainingArguments:
    arguments: TrainingArguments = loop_arguments(
        directory,
        num_train_epochs=settings.num_train_epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=64,
        learning_rate=settings.rate,
        weight_decay=settings.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,  # of all steps
        max_grad_norm=1.0,
        eval_strategy="epoch",
        save_strategy="no",
        logging_strategy="epoch",
        seed=settings.seed,
    )
    return arguments
