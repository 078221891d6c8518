"""Mirrors ``planning/steps.py``: against the count that transformers' Trainer makes."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import Trainer, TrainingArguments

from deepmlf_llm.planning.steps import planned_steps
from deepmlf_llm.training.settings import RunSettings


@pytest.mark.parametrize("processes", [1, 2])
def test_equals_what_the_trainer_counts(processes, tmp_path):
    for utterances, batch, accumulated, epochs, most in itertools.product(
        (1, 7, 40, 41), (1, 8), (1, 3), (0.3, 1, 2.5, 3), (-1, 5)
    ):
        arguments = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulated,
            num_train_epochs=epochs,
            max_steps=most,
            use_cpu=True,
            report_to="none",
        )
        trainer = Trainer(torch.nn.Linear(1, 1), arguments, train_dataset=range(utterances))
        loader = torch.utils.data.DataLoader(range(-(-utterances // (batch * processes))))  # batches of one process
        _, per_epoch, *_, total = trainer.set_initial_training_values(arguments, loader)
        steps = planned_steps(utterances, batch, processes, accumulated, epochs, most)
        assert (steps.per_epoch, steps.total) == (per_epoch, total), (utterances, batch, accumulated, epochs, most)


def test_settings_of_a_run_say_the_same():
    settings = RunSettings.from_dict({"batch_size": 8, "num_train_epochs": 3})
    assert settings.planned_steps(40, 1).total == 15
    assert settings.planned_steps(41, 2).total == 18
    assert settings.planned_steps(41, 2).per_epoch == 6
    assert RunSettings.from_dict({"max_steps": 7}).planned_steps(40, 1).total == 7
    assert RunSettings.from_dict({"batch_size": 8, "num_train_epochs": 0.5}).planned_steps(40, 1).total == 3
