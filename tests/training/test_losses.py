"""One large batch against the same utterances in several small ones: the same loss, the same gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from deepmlf_llm.backbones import load_base_model, load_tokenizer
from deepmlf_llm.config.method import DeepMLFConfig, ObjectiveConfig
from deepmlf_llm.data.collate import Collator
from deepmlf_llm.model.peft_model import DeepMLFModel
from deepmlf_llm.training.losses import LossWindow, batch_counts, weighted_loss

from .conftest import DIMS, Utterances

MODALITIES = tuple(DIMS)


@pytest.fixture(scope="module")
def model() -> DeepMLFModel:
    torch.manual_seed(0)
    config = DeepMLFConfig(
        fusion_layers=[1, 3],
        num_fusion_tokens=2,
        head_norm="layer",  # BatchNorm sees each batch apart, by design
        modalities={name: {"dim": dim} for name, dim in DIMS.items()},
        objective={"gamma": 0.7},
    )
    return DeepMLFModel(load_base_model("tiny-llama"), config).eval()


def batch_of(rows: list[int]) -> dict[str, torch.Tensor]:
    # Every third utterance has neither audio nor vision; texts differ in length.
    data = Utterances(24, seed=0, absent=lambda i: MODALITIES if i % 3 == 0 else ())
    return Collator(load_tokenizer("tiny-llama"), DIMS)([data[i] for i in rows])


def gradient(model: DeepMLFModel, parts: list[list[int]]) -> tuple[float, dict[str, torch.Tensor]]:
    batches = [batch_of(rows) for rows in parts]
    total = torch.stack([batch_counts(batch, MODALITIES) for batch in batches]).sum(dim=0)
    model.zero_grad()
    loss = 0.0
    for batch in batches:
        output = model(**batch)
        share = batch_counts(batch, MODALITIES) / total.clamp(min=1)
        part, _ = weighted_loss(model.deepmlf_config.objective, output.losses, share)
        part.backward()
        loss += part.item()
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "parts",
    [
        [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]],
        [[0, 1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11]],  # a last partial window
        [[0, 3, 6, 9], [1, 2, 4, 5, 7, 8, 10, 11]],  # the first batch hears and sees nothing
        [[i] for i in range(12)],
    ],
)
def test_any_split_of_a_step_gives_the_same_gradient(model: DeepMLFModel, parts: list[list[int]]) -> None:
    whole_loss, whole = gradient(model, [list(range(12))])
    loss, split = gradient(model, parts)
    assert loss == pytest.approx(whole_loss, abs=1e-5)
    assert split.keys() == whole.keys()
    for name, expected in whole.items():
        assert_close(split[name], expected, rtol=1e-3, atol=1e-5, msg=name)


def test_one_batch_alone_has_the_models_own_loss(model: DeepMLFModel) -> None:
    output = model(**batch_of([1, 2, 4]))
    loss, parts = weighted_loss(model.deepmlf_config.objective, output.losses, torch.ones(3))
    assert_close(loss, output.loss)
    assert {name: value.item() for name, value in parts.items() if name != "loss"} == {
        f"loss_{name}": value.item() for name, value in output.losses.items()
    }


def test_counts() -> None:
    batch: dict[str, Any] = {
        "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1], [0, 0, 1]]),
        "audio_mask": torch.tensor([[True], [False], [False]]),
        "vision_mask": torch.tensor([[True], [True], [False]]),
    }
    assert batch_counts(batch, ("audio", "vision")).tolist() == [3, 2, 3]
    assert batch_counts(batch, ("audio",)).tolist() == [3, 1, 3]


def test_window_is_the_mean_over_steps() -> None:
    objective, window = ObjectiveConfig(), LossWindow(torch.device("cpu"))
    for step in range(4):
        for _ in range(2):  # two batches a step, each half of it
            losses = {"task": torch.tensor(float(step)), "av": torch.tensor(2.0)}
            window.add(weighted_loss(objective, losses, torch.tensor([0.5, 0.5, 0.5]))[1])
        window.steps += 1
    assert window.drain() == pytest.approx({"loss": 1.5 + 0.8 * 2, "loss_task": 1.5, "loss_av": 2.0})
    assert window.steps == 0
