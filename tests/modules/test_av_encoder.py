"""The AV encoder, whole and in parts, against formulas on unpadded sequences in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from deepmlf_llm.modules import AVContext, AVEncoder, pool_time
from deepmlf_llm.modules.av_encoder import sinusoids
from tests import reference

DIMS = {"audio": 4, "vision": 6}


def encoder(**settings):
    sizes = {"width": 12, "num_layers": 2, "num_heads": 3, "ffw_width": 16, "max_frames": 5}
    torch.manual_seed(0)
    module = AVEncoder(DIMS, **{**sizes, **settings}).double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def batch(counts, padding=0, noise=0.0):
    """Features with these real frames a row, by modality; ``noise`` is what padding holds."""
    torch.manual_seed(1)
    features = {}
    for name, rows in counts.items():
        mask = torch.arange(max(rows) + padding) < torch.tensor(rows)[:, None]
        frames = torch.full((*mask.shape, DIMS[name]), noise, dtype=torch.float64)
        for row, count in enumerate(rows):
            frames[row, :count] = torch.randn(count, DIMS[name]).double()
        features[name] = (frames, mask)
    return features


COUNTS = {"audio": [9, 2, 0, 1, 0], "vision": [4, 5, 3, 0, 0]}


@pytest.mark.parametrize("max_frames", [3, 5, 50])
def test_equals_its_formulas(max_frames):
    module, features = encoder(max_frames=max_frames), batch(COUNTS)
    with torch.no_grad():
        context = module(features)
    settings = reference.Settings(heads=1, av_heads=3, max_frames=max_frames)
    for row in range(5):
        frames = {name: features[name][0][row, : COUNTS[name][row]] for name in DIMS}
        expected = reference.av_context(frames, reference.weights_of(module), settings)
        assert int(context.mask[row].sum()) == len(expected) == min(max_frames, max(c[row] for c in COUNTS.values()))
        assert context.mask[row, : len(expected)].all()
        assert_close(context.frames[row, : len(expected)], expected, rtol=1e-9, atol=1e-12)
        assert not context.frames[row, len(expected) :].count_nonzero()
        mean = expected.mean(0) if len(expected) else torch.zeros(12).double()
        assert_close(context.mean()[row], mean, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("noise", [1e6, float("nan"), float("inf")])
def test_padding_of_any_content_and_amount_is_never_read(noise):
    module = encoder()
    with torch.no_grad():
        expected, found = module(batch(COUNTS)), module(batch(COUNTS, padding=4, noise=noise))
    frames = expected.frames.shape[1]
    assert_close(found.frames[:, :frames], expected.frames)
    assert torch.equal(found.mask[:, :frames], expected.mask)
    assert not found.mask[:, frames:].any()


def test_real_frames_may_sit_anywhere():
    module, features = encoder(), batch(COUNTS)
    flipped = {}
    for name, (frames, mask) in features.items():
        order = mask.long().argsort(dim=1, stable=True)  # padding first
        flipped[name] = (frames.gather(1, order[..., None].expand_as(frames)), mask.gather(1, order))
    with torch.no_grad():
        assert_close(module(flipped).frames, module(features).frames)


def test_gradients_are_finite_where_a_modality_is_absent():
    module, features = encoder(), batch(COUNTS)
    for frames, _ in features.values():
        frames.requires_grad_()
    module(features).mean().sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())
    for frames, mask in features.values():
        assert frames.grad.isfinite().all()
        assert not frames.grad[~mask].count_nonzero()


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 3))
def test_pooling_takes_contiguous_windows_that_cover_every_frame(length, out, padding):
    x = torch.arange(1.0, length + 1).double().reshape(1, -1, 1)
    padded = torch.cat([x, torch.full((1, padding, 1), 1e9).double()], dim=1)
    mask = torch.arange(length + padding)[None] < length
    found = pool_time(padded, mask, torch.tensor([out]), out + 2)
    assert_close(found[:, :out], reference.pool(x[0], out)[None])
    assert not found[:, out:].count_nonzero()
    assert_close(found[0, :out], torch.nn.functional.adaptive_avg_pool1d(x[0].T, out).T)
    assert (found[0, :out].diff(dim=0) >= 0).all(), "time keeps its order"


def test_positions_start_at_one_sines_before_cosines():
    found = sinusoids(torch.tensor([1.0, 7.0]).double(), 8)
    for row, position in enumerate((1, 7)):
        angles = [position * 10000 ** (-i / 3) for i in range(4)]
        expected = torch.tensor([*map(math.sin, angles), *map(math.cos, angles)], dtype=torch.float64)
        assert_close(found[row], expected)


def test_long_sequences_keep_their_positions_under_bf16_autocast():
    """bf16 counts to 256: frame 400 would stand where frame 402 stands."""
    module = encoder(num_layers=0, max_frames=500).float()
    frames = torch.zeros(1, 500, DIMS["audio"])
    features = {
        "audio": (frames, torch.ones(1, 500).bool()),
        "vision": (torch.zeros(1, 1, 6), torch.zeros(1, 1).bool()),
    }
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = module.encoders["audio"](*features["audio"])
    expected = torch.stack([sinusoids(torch.tensor([float(p)]), 12)[0] for p in range(1, 501)])
    assert_close(found[0].float(), expected, rtol=0, atol=0.01)


def test_dropout_acts_in_training_only_and_on_raw_features_if_asked():
    features = batch(COUNTS)
    for settings in ({"dropout": 0.5}, {"dropout": 0.0, "input_dropout": 0.5}):
        module = encoder(**settings)
        assert torch.equal(module(features).frames, module(features).frames)
        module.train()
        assert not torch.allclose(module(features).frames, module(features).frames)
    module = encoder(dropout=0.0).train()
    assert torch.equal(module(features).frames, module(features).frames)


def test_the_papers_size():
    """About 0.1 M parameters for MOSEI's two modalities."""
    size = sum(p.numel() for p in AVEncoder({"audio": 74, "vision": 35}).parameters())
    assert 60_000 < size < 120_000


def test_mean_of_nothing_is_zero():
    assert not AVContext(torch.zeros(2, 3, 4), torch.zeros(2, 3).bool()).mean().count_nonzero()
