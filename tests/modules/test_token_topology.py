"""Which fusion tokens read which, and which frames, pair by pair."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.testing import assert_close

from deepmlf_llm.modules import AVContext, Pooled, Segregated
from tests.reference import layer_norm, weights_of

NAMES, SIZES, B, T, WIDTH = ("audio", "vision"), (2, 1, 3), 3, 4, 6
GROUP = [0, 0, 1, 2, 2, 2]  # of each token


@pytest.fixture
def context():
    real = torch.arange(T) < torch.tensor([T, 2, 0])[:, None]
    heard = {"audio": real, "vision": real & torch.tensor([True, False, True])[:, None]}
    parts = {name: AVContext(torch.randn(B, T, WIDTH).double(), mask) for name, mask in heard.items()}
    return AVContext(torch.randn(B, T, WIDTH).double(), real, parts)


def test_pooled_tokens_are_left_to_the_lm_and_read_all_of_z(context):
    pooled = Pooled()
    assert pooled.reads(torch.device("cpu")) is None
    assert (pooled.frames(context), pooled.mask(context)) == (context.frames, context.mask)
    assert not pooled.state_dict()


def test_a_group_reads_itself_and_the_joint_one_reads_all():
    reads = Segregated(NAMES, SIZES, WIDTH).reads(torch.device("cpu"))
    for reader, read in itertools.product(range(len(GROUP)), repeat=2):
        allowed = GROUP[reader] == 2 or GROUP[reader] == GROUP[read]
        assert reads[reader, read].item() is allowed, (reader, read)


def test_a_group_reads_its_own_modality_and_the_joint_one_z(context):
    mask = Segregated(NAMES, SIZES, WIDTH).mask(context)
    own = [context.parts["audio"].mask, context.parts["vision"].mask, context.mask]
    for row, token, index, frame in itertools.product(range(B), range(len(GROUP)), range(3), range(T)):
        allowed = index == GROUP[token] and own[index][row, frame].item()
        assert mask[row, token, index * T + frame].item() is allowed, (row, token, index, frame)


def test_frames_of_each_modality_are_normed_as_z_is(context):
    topology = Segregated(NAMES, SIZES, WIDTH).double()
    with torch.no_grad():
        for parameter in topology.parameters():
            parameter.add_(torch.randn_like(parameter))
    w = weights_of(topology)
    parts = [layer_norm(context.parts[name].frames, w, f"norms.{name}", 1e-5) for name in NAMES]
    assert_close(topology.frames(context), torch.cat([*parts, context.frames], dim=1))
    assert w.keys() == {f"norms.{name}.{kind}" for name in NAMES for kind in ("weight", "bias")}
