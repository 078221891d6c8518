"""The AV encoder, whole and in parts, against formulas on unpadded sequences in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from deepmlf_llm.modules import AVContext, AVEncoder, av_encoder
from deepmlf_llm.modules.av_encoder import self_attention, sinusoids
from tests import reference

POOLS = ("before", "after")
DIMS = {"audio": 4, "vision": 6, "pulse": 1}


def encoder(names=("audio", "vision"), **settings):
    sizes = {"width": 12, "num_layers": 2, "num_heads": 3, "ffw_width": 16, "max_frames": 5}
    torch.manual_seed(0)
    module = AVEncoder({name: DIMS[name] for name in names}, **{**sizes, **settings}).double().eval()
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.dim() == 1:
                noise = 0.3 * torch.randn_like(tensor)
                tensor.add_(noise.abs() if "running_var" in name else noise)
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


THREE = {**COUNTS, "pulse": [0, 7, 1, 0, 0]}


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("max_frames", [1, 3, 5, 50])
@pytest.mark.parametrize("names", [["audio"], ["audio", "vision"], ["audio", "pulse", "vision"]], ids="-".join)
def test_equals_its_formulas(names, max_frames, pool, norm):
    """Rows with more frames than windows, with fewer, with one, with one modality only, with none."""
    counts = {name: THREE[name] for name in names}
    module, features = encoder(names, max_frames=max_frames, pool=pool, feature_norm=norm), batch(counts)
    with torch.no_grad():
        context = module(features)
    settings = reference.Settings(heads=1, av_heads=3, max_frames=max_frames, pool=pool)
    for row in range(5):
        frames = {name: features[name][0][row, : counts[name][row]] for name in names}
        expected = reference.av_context(frames, reference.weights_of(module), settings)
        assert int(context.mask[row].sum()) == len(expected) == min(max_frames, max(c[row] for c in counts.values()))
        assert context.mask[row, : len(expected)].all()
        assert_close(context.frames[row, : len(expected)], expected, rtol=0, atol=1e-13)
        assert not context.frames[row, len(expected) :].count_nonzero()
        mean = expected.mean(0) if len(expected) else torch.zeros(12).double()
        assert_close(context.mean()[row], mean, rtol=0, atol=1e-13)


@pytest.mark.parametrize("pool", POOLS)
def test_windows_past_those_of_a_row_are_never_read(pool):
    """A row's context is the same alone and in a batch of longer ones."""
    module, features = encoder(pool=pool), batch(COUNTS)
    with torch.no_grad():
        together = module(features)
        for row in range(4):
            counts = {name: rows[row] for name, rows in COUNTS.items()}
            alone = module({name: (x[row : row + 1, : max(n, 1)], m[row : row + 1, : max(n, 1)])
                            for (name, (x, m)), n in zip(features.items(), counts.values(), strict=True)})  # fmt: skip
            windows = min(5, max(counts.values()))
            assert_close(alone.frames[0, :windows], together.frames[row, :windows], rtol=0, atol=1e-13)


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("noise", [1e6, float("nan"), float("inf")])
def test_padding_of_any_content_and_amount_is_never_read(noise, pool, norm):
    module = encoder(pool=pool, feature_norm=norm)
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


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("pool", POOLS)
def test_gradients_are_finite_where_a_modality_is_absent(pool, norm):
    module, features = encoder(pool=pool, feature_norm=norm).train(), batch(COUNTS, padding=2)
    for frames, _ in features.values():
        frames.requires_grad_()
    module(features).mean().sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())
    for frames, mask in features.values():
        assert frames.grad.isfinite().all()
        assert not frames.grad[~mask].count_nonzero()


def test_by_default_pooled_frames_go_through_the_layers():
    seen = []
    module = encoder(max_frames=3)
    for part in module.encoders.values():
        part.layers[0].register_forward_hook(lambda layer, args, out: seen.append(args[0].shape[1]))
    module(batch(COUNTS))
    encoder(max_frames=3, pool="after")(batch(COUNTS))
    assert seen == [3, 3]


@pytest.mark.parametrize("pool", POOLS)
def test_a_batch_without_any_frame_is_finite_and_trains(pool):
    module = encoder(pool=pool, feature_norm="batch").train()
    context = module(batch({"audio": [0, 0], "vision": [0, 0]}, padding=2, noise=float("nan")))
    assert not context.mask.any()
    assert not context.frames.count_nonzero()
    context.mean().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    assert all(buffer.isfinite().all() for buffer in module.buffers())


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


def test_the_order_of_features_in_a_batch_does_not_matter():
    module, features = encoder(), batch(COUNTS)
    assert torch.equal(module(dict(reversed(features.items()))).frames, module(features).frames)


def test_the_papers_size():
    """About 0.1 M parameters for MOSEI's two modalities."""
    size = sum(p.numel() for p in AVEncoder({"audio": 74, "vision": 35}).parameters())
    assert 60_000 < size < 120_000


def test_mean_of_nothing_is_zero():
    assert not AVContext(torch.zeros(2, 3, 4), torch.zeros(2, 3).bool()).mean().count_nonzero()


class TestAttentionWithDropout:
    """On a CPU large maps are made in parts, again backwards; here in two parts of two rows. A small one is kept."""

    def parts(self, monkeypatch, kept=0):
        monkeypatch.setattr(av_encoder, "MAP_ELEMENTS", 2 * 2 * 5 * 5)
        monkeypatch.setattr(av_encoder, "KEPT_ELEMENTS", kept)
        torch.manual_seed(2)
        query, key, value = (torch.randn(4, 2, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
        attend = torch.arange(5) < torch.tensor([5, 3, 1, 4])[:, None]
        return query, key, value, attend

    def test_on_average_it_is_attention_without(self, monkeypatch):
        query, key, value, attend = self.parts(monkeypatch)
        expected = self_attention(query, key, value, attend, 0.0)
        with torch.no_grad():
            draws = torch.stack([self_attention(query, key, value, attend, 0.3) for _ in range(4000)])
        spread = draws.std(dim=0) / math.sqrt(len(draws))
        assert ((draws.mean(dim=0) - expected).abs() < 5 * spread + 1e-6).all()
        assert (draws.std(dim=0) > 0.05).any()

    def test_a_share_of_the_weights_is_dropped_and_the_rest_scaled(self, monkeypatch):
        frames = 64
        ones = torch.ones(2, 3, frames, 1)
        attend = torch.ones(2, frames, dtype=torch.bool)
        # equal weights over values that mark each key: the output says which keys were kept
        read = self_attention(torch.zeros_like(ones), ones, torch.eye(frames).expand(2, 3, -1, -1), attend, 0.25)
        kept = read * frames > 0.5
        assert abs(kept.float().mean() - 0.75) < 0.02
        assert_close(read[kept] * frames, torch.full_like(read[kept], 1 / 0.75))
        assert not (read[0] == read[1]).all()

    @pytest.mark.parametrize("kept", [0, 4 * 2 * 5 * 5])
    def test_backwards_the_same_weights_are_dropped(self, monkeypatch, kept):
        *inputs, attend = self.parts(monkeypatch, kept)

        def seeded(*given):
            torch.manual_seed(3)
            return self_attention(*given, attend, 0.3)

        assert torch.autograd.gradcheck(seeded, inputs)

    def test_masked_frames_are_not_read(self, monkeypatch):
        query, key, value, attend = self.parts(monkeypatch)
        with torch.no_grad():
            torch.manual_seed(3)
            expected = self_attention(query, key, value, attend, 0.3)
            hidden = ~attend[:, None, :, None]
            torch.manual_seed(3)
            changed = self_attention(query, key.masked_fill(hidden, 7.0), value.masked_fill(hidden, 9.0), attend, 0.3)
        assert_close(changed, expected, rtol=0, atol=0)

    @pytest.mark.cpu
    @pytest.mark.parametrize(("kept", "maps"), [(4 * 2 * 5 * 5 - 1, False), (4 * 2 * 5 * 5, True)])
    def test_only_a_small_map_is_kept_for_the_backward_pass(self, monkeypatch, kept, maps):
        *inputs, attend = self.parts(monkeypatch, kept)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.shape) or x, lambda x: x):
            self_attention(*inputs, attend, 0.3)
        assert any(tuple(shape[-2:]) == (5, 5) for shape in sizes) is maps
