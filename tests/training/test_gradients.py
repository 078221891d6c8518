from __future__ import annotations

import pytest
import torch
from torch import nn

from deepmlf_llm.errors import RunError
from deepmlf_llm.training.gradients import FirstGradients


@pytest.fixture
def model() -> nn.ModuleDict:
    return nn.ModuleDict({"av_encoder": nn.Linear(2, 2), "fusion": nn.Linear(2, 2)})


def watch(model: nn.ModuleDict) -> FirstGradients:
    return FirstGradients({name: list(part.named_parameters()) for name, part in model.items()} | {"lm_lora": []})


def test_watches_until_every_group_has_learned(model: nn.ModuleDict) -> None:
    first = watch(model)
    x = torch.ones(1, 2)
    model["fusion"](x).sum().backward()
    first.saw_batch([torch.tensor([[False]])])
    first.check(1)  # no frame yet: the AV encoder may wait
    assert not first.done
    model["fusion"](model["av_encoder"](x)).sum().backward()
    first.saw_batch([torch.tensor([[True]])])
    first.check(2)
    assert first.done
    assert all(not p._backward_hooks for p in model.parameters())


def test_a_group_without_gradient_is_named(model: nn.ModuleDict) -> None:
    first = watch(model)
    model["av_encoder"](torch.ones(1, 2)).sum().backward()
    with pytest.raises(RunError, match="step 1: no gradient reaches fusion"):
        first.check(1)


def test_frames_without_a_gradient_in_the_encoder_are_a_defect(model: nn.ModuleDict) -> None:
    first = watch(model)
    model["fusion"](model["av_encoder"](torch.ones(1, 2)).detach()).sum().backward()
    first.saw_batch([torch.tensor([[True]])])
    with pytest.raises(RunError, match="no gradient reaches av_encoder"):
        first.check(1)


def test_what_stands_behind_a_gate_that_starts_shut_may_wait_and_not_for_ever(model: nn.ModuleDict) -> None:
    groups = {name: list(part.named_parameters()) for name, part in model.items()}
    first = FirstGradients(groups, {"av_encoder": 2})
    for step in (1, 2, 3):
        model["fusion"](torch.ones(1, 2)).sum().backward()
        first.saw_batch([torch.tensor([[True]])])
        if step < 3:
            first.check(step)
    with pytest.raises(RunError, match="step 3: no gradient reaches av_encoder"):
        first.check(3)


def test_zero_gradients_do_not_count(model: nn.ModuleDict) -> None:
    first = watch(model)
    (0 * model["fusion"](torch.ones(1, 2))).sum().backward()
    with pytest.raises(RunError, match="no gradient reaches fusion"):
        first.check(1)
