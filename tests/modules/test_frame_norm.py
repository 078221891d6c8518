"""BatchNorm over real frames, against torch's own on those frames alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from deepmlf_llm.modules.frame_norm import FrameBatchNorm, NoFrameNorm

B, T, D = 3, 5, 4
MASK = torch.arange(T) < torch.tensor([5, 2, 0])[:, None]


@pytest.fixture
def norms():
    ours, theirs = FrameBatchNorm(D).double(), nn.BatchNorm1d(D).double()
    with torch.no_grad():
        ours.weight.normal_()
        ours.bias.normal_()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def frames(padding=0.0):
    torch.manual_seed(1)
    x = 3 + 2 * torch.randn(B, T, D).double()
    return x.masked_fill(~MASK[..., None], padding)


def test_statistics_are_those_of_real_frames_only(norms):
    ours, theirs = norms
    for step in range(3):
        x = frames(padding=1e3) * (step + 1)
        assert_close(ours(x, MASK)[MASK], theirs(x[MASK]), rtol=0, atol=1e-13)
    assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=1e-13, atol=1e-13)
    ours.eval(), theirs.eval()
    assert_close(ours(frames(), MASK)[MASK], theirs(frames()[MASK]), rtol=0, atol=1e-13)


def test_gradients_are_those_of_real_frames_only(norms):
    ours, theirs = norms
    x, y = frames().requires_grad_(), frames().requires_grad_()
    weights = torch.randn(int(MASK.sum()), D).double()
    (ours(x, MASK)[MASK] * weights).sum().backward()
    (theirs(y[MASK]) * weights).sum().backward()
    assert_close(x.grad, y.grad, rtol=0, atol=1e-13)
    assert_close(ours.weight.grad, theirs.weight.grad)
    assert_close(ours.bias.grad, theirs.bias.grad)


@pytest.mark.parametrize("real", [0, 1])
def test_without_a_variance_the_running_statistics_serve_and_stay(real):
    norm = FrameBatchNorm(D).double()
    norm(frames(), MASK)
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    mask = (torch.arange(B * T) < real).reshape(B, T)
    x = frames().requires_grad_()
    found = norm(x, mask)
    assert_close(dict(norm.state_dict()), before, rtol=0, atol=0)
    assert_close(found, norm.eval()(x, mask), rtol=0, atol=0)
    found.sum().backward()
    assert x.grad.isfinite().all()
    assert norm.weight.grad.isfinite().all()


def test_none_is_the_features_themselves():
    x = frames()
    assert NoFrameNorm(D)(x, MASK) is x
    assert not NoFrameNorm(D).state_dict()
