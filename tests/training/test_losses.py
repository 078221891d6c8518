"""One large batch against the same utterances in several small ones: the same loss, the same gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from deepmlf_llm.backbones import load_base_model, load_tokenizer
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.data.collate import Collator
from deepmlf_llm.model.peft_model import DeepMLFModel
from deepmlf_llm.training.losses import LossWindow, batch_counts, logged_parts, step_counts

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
        objective={"gamma": 0.7, "lambda_polarity": 0.3, "lambda_prototypes": 0.2},
        readout="both",
        verbalised_ids={str(i): 20 + i for i in range(1, 8)},
    )
    return DeepMLFModel(load_base_model("tiny-llama"), config).eval()


def batch_of(rows: list[int], device: torch.device) -> dict[str, torch.Tensor]:
    # Every third utterance has neither audio nor vision; texts differ in length.
    data = Utterances(24, seed=0, absent=lambda i: MODALITIES if i % 3 == 0 else ())
    batch = Collator(load_tokenizer("tiny-llama"), DIMS)([data[i] for i in rows])
    return {name: x.to(device) for name, x in batch.items()}


def gradient(model: DeepMLFModel, parts: list[list[int]]) -> tuple[float, dict[str, torch.Tensor]]:
    device = str(model.device)
    batches = [batch_of(rows, model.device) for rows in parts]
    counts = step_counts(batches, MODALITIES, device)
    model.zero_grad()
    loss = 0.0
    for batch in batches:
        part = model(**batch, loss_counts=counts).loss
        part.backward()
        loss += part.item()
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "parts",
    [
        [[i] for i in range(8)],  # 8 x 1 is 8
        [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]],
        [[0, 1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11]],  # a last partial window
        [[0, 3, 6, 9], [1, 2, 4, 5, 7, 8, 10, 11]],  # the first batch hears and sees nothing
        [[i] for i in range(12)],
    ],
)
def test_any_split_of_a_step_gives_the_same_gradient(model: DeepMLFModel, parts: list[list[int]]) -> None:
    whole_loss, whole = gradient(model, [sorted(i for rows in parts for i in rows)])
    loss, split = gradient(model, parts)
    assert loss == pytest.approx(whole_loss, abs=1e-5)
    assert split.keys() == whole.keys()
    for name, expected in whole.items():
        assert_close(split[name], expected, rtol=1e-3, atol=1e-5, msg=name)


def test_in_float64_any_split_is_the_whole_to_rounding() -> None:
    torch.manual_seed(0)
    config = DeepMLFConfig(
        fusion_layers=[3], num_fusion_tokens=2, ffw_lora_r=1, head_norm="layer", objective={"gamma": 0.7},
        modalities={name: {"dim": dim} for name, dim in DIMS.items()},
    )  # fmt: skip
    model = DeepMLFModel(load_base_model("tiny-llama").double(), config).eval()
    whole_loss, whole = gradient(model, [list(range(8))])
    loss, split = gradient(model, [[i] for i in range(8)])
    assert loss == pytest.approx(whole_loss, abs=1e-6)  # transformers' own norms are fp32
    heads = [name for name in whole if ".heads." in name or ".av_encoder." in name]
    assert {whole[name].dtype for name in whole} == {torch.float64}
    for name in heads:
        assert_close(split[name], whole[name], rtol=1e-6, atol=1e-8, msg=name)


def test_one_batch_alone_has_the_models_own_loss(model: DeepMLFModel) -> None:
    batch = batch_of([1, 2, 4], model.device)
    output, told = model(**batch), model(**batch, loss_counts=step_counts([batch], MODALITIES, str(model.device)))
    assert_close(told.loss, output.loss, rtol=0, atol=0)
    assert_close(told.losses, output.losses, rtol=0, atol=0)


def test_two_processes_average_to_the_gradient_of_one(model: DeepMLFModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank's batches are divided by its share of what both have; the mean of their gradients is then exact."""
    ranks = [[[0, 1, 2], [3, 4]], [[5, 6], [7, 8, 9, 10, 11]]]
    whole_loss, whole = gradient(model, [list(range(12))])
    device = str(model.device)
    own = [step_counts([batch_of(rows, model.device) for rows in parts], MODALITIES, device) for parts in ranks]
    total = torch.stack([torch.stack(list(counts.values())) for counts in own]).sum(dim=0)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda counts: counts.copy_(total))
    found: dict[str, torch.Tensor] = {}
    loss = 0.0
    for parts in ranks:
        batches = [batch_of(rows, model.device) for rows in parts]
        counts = step_counts(batches, MODALITIES, device, processes=2)
        model.zero_grad()
        for batch in batches:
            part = model(**batch, loss_counts=counts).loss
            part.backward()
            loss += part.item() / 2
        for name, p in model.named_parameters():
            if p.grad is not None:
                found[name] = found.get(name, 0) + p.grad / 2
    assert loss == pytest.approx(whole_loss, abs=1e-5)
    for name, expected in whole.items():
        assert_close(found[name], expected, rtol=1e-3, atol=1e-5, msg=name)


def test_counts() -> None:
    batch: dict[str, Any] = {
        "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1], [0, 0, 1]]),
        "audio_mask": torch.tensor([[True], [False], [False]]),
        "vision_mask": torch.tensor([[True], [True], [False]]),
        "labels": torch.tensor([0.0, -1.0, 2.0]),
    }

    def told(*modalities: str) -> dict[str, int]:
        return {name: int(count) for name, count in batch_counts(batch, modalities).items()}

    always = {"task": 3, "fusion": 3, "text": 3, "verbalised": 3, "polarity": 2, "prototypes": 3, "lm": 3}
    assert told("audio", "vision") == {"av": 2, **always}
    assert told("audio")["av"] == 1
    twice = step_counts([batch, batch], ("audio", "vision"), "cpu")
    assert {name: count.item() for name, count in twice.items()} == {
        "av": 4, **{name: 2 * count for name, count in always.items()}
    }  # fmt: skip


def test_window_is_the_mean_over_steps() -> None:
    window = LossWindow(torch.device("cpu"))
    for step in range(4):
        for _ in range(2):  # two batches a step, each half of it
            losses = {"task": torch.tensor(step / 2), "av": torch.tensor(1.0)}
            window.add(logged_parts(losses["task"] + 0.8 * losses["av"], losses))
        window.steps += 1
    assert window.drain() == pytest.approx({"loss": 1.5 + 0.8 * 2, "loss_task": 1.5, "loss_av": 2.0})
    assert window.steps == 0
