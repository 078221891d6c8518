from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from deepmlf_llm.errors import ConfigError
from deepmlf_llm.training.augmentation import Augmentation
from deepmlf_llm.training.batching import INDEX
from deepmlf_llm.training.settings import RunSettings

NAMES = ("audio", "vision")


def batch_of(utterances: list[int], frames: int = 10, padding: int = 2) -> dict[str, Any]:
    real = torch.arange(frames + padding) < frames
    masks = {f"{name}_mask": real.repeat(len(utterances), 1) for name in NAMES}
    return {INDEX: torch.tensor(utterances), **masks}


def present(batch: dict[str, Any], name: str) -> torch.Tensor:
    return batch[f"{name}_mask"].any(dim=1)


def test_at_rest_a_batch_is_what_it_was() -> None:
    batch = batch_of([3, 1])
    found = Augmentation(NAMES, seed=0)(batch, epoch=0)
    assert found.keys() == batch.keys()
    assert all(found[name] is value for name, value in batch.items())


def test_each_modality_goes_at_its_probability_and_apart_from_the_others() -> None:
    batch = batch_of(list(range(4000)))
    found = Augmentation(NAMES, seed=1, modality_dropout=0.3)(batch, epoch=2)
    audio, vision = (~present(found, name) for name in NAMES)
    for gone in (audio, vision):
        assert gone.float().mean() == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 4000) ** 0.5)
    assert (audio & vision).float().mean() == pytest.approx(0.09, abs=4 * (0.09 * 0.91 / 4000) ** 0.5)
    stays = ~audio
    assert torch.equal(found["audio_mask"][stays], batch["audio_mask"][stays]), "whole, or not at all"
    assert batch["audio_mask"][:, :10].all(), "the batch that was given stays as it is"


def test_frames_go_at_their_rate_and_never_padding_or_the_last_one() -> None:
    batch = batch_of(list(range(500)))
    found = Augmentation(NAMES, seed=1, frame_dropout=0.4)(batch, epoch=0)["audio_mask"]
    assert not found[:, 10:].any()
    assert found.any(dim=1).all()
    assert 1 - found[:, :10].float().mean() == pytest.approx(0.4, abs=0.03)
    alone = Augmentation(NAMES, seed=1, frame_dropout=0.99)(batch_of(list(range(50)), frames=1), epoch=0)
    assert all(present(alone, name).all() for name in NAMES)


def test_what_an_utterance_loses_depends_on_nothing_but_seed_epoch_and_itself() -> None:
    """Not on its neighbours, its place in the batch, or the padding: so not on processes and accumulation either."""
    drop = Augmentation(NAMES, seed=5, modality_dropout=0.4, frame_dropout=0.5)
    whole = drop(batch_of([7, 2, 9, 4]), epoch=3)
    part = drop(batch_of([4, 7], padding=0), epoch=3)
    for name in (f"{name}_mask" for name in NAMES):
        assert torch.equal(part[name], whole[name][[3, 0], :10])
    fewer = Augmentation(("vision",), seed=5, modality_dropout=0.4, frame_dropout=0.5)(batch_of([4, 7]), epoch=3)
    assert torch.equal(fewer["vision_mask"], whole["vision_mask"][[3, 0]]), "nor on which other modalities are used"


def test_another_epoch_seed_or_utterance_loses_something_else() -> None:
    def lost(seed: int, epoch: int, first: int) -> np.ndarray:
        drop = Augmentation(NAMES, seed=seed, modality_dropout=0.5)
        return present(drop(batch_of(list(range(first, first + 64))), epoch), "audio").numpy()

    seen = [lost(0, 0, 0), lost(1, 0, 0), lost(0, 1, 0), lost(0, 0, 64)]
    assert all(10 < (a != b).sum() < 54 for i, a in enumerate(seen) for b in seen[:i])


def labelled(utterances: list[int], labels: list[float], absent: tuple[int, ...] = ()) -> dict[str, Any]:
    """Frames that say which utterance and modality they are of."""
    batch = batch_of(utterances, frames=3, padding=1)
    for number, name in enumerate(NAMES):
        rows = torch.tensor(utterances, dtype=torch.float32)[:, None, None] + 1000 * number
        batch[name] = rows.expand(-1, 4, 2).clone()
    for row in absent:
        batch["vision_mask"][row] = False
    return {**batch, "labels": torch.tensor(labels)}


def test_features_and_the_av_label_are_blended_with_one_partner_of_near_label() -> None:
    labels = [0.0, 0.1, 0.2, 3.0, 3.1, -3.0] * 20
    batch = labelled(list(range(120)), labels)
    found = Augmentation(NAMES, seed=3, cmixup_alpha=2.0, cmixup_bandwidth=0.1)(batch, epoch=1)
    values, own = found["audio"][:, 0, 0], batch["audio"][:, 0, 0]
    assert_close(found["vision"][:, :3], (found["audio"] + 1000)[:, :3], msg="one partner and factor for all")
    assert (values != own).float().mean() > 0.9
    assert torch.equal(found["audio"][:, 3], batch["audio"][:, 3]), "padding"
    assert torch.equal(found["labels"], batch["labels"])
    assert found["head_labels"].keys() == {"av"}
    # Which partner and factor it was, from the two blends: label_j and value_j are both known of each j.
    for row in range(120):
        partners = torch.arange(120)
        share = (values[row] - own[partners]) / (own[row] - own[partners])
        blend = share * labels[row] + (1 - share) * batch["labels"]
        near = (batch["labels"] - labels[row]).abs() < 0.6
        fits = near & (share >= 0.5 - 1e-6) & (share <= 1) & ((blend - found["head_labels"]["av"][row]).abs() < 1e-4)
        assert fits.any() or values[row] == own[row], row


def test_who_lacks_a_modality_is_no_partner_of_one_who_has_it() -> None:
    batch = labelled([1, 2, 3, 4], [0.0] * 4, absent=(1, 2, 3))
    blend = Augmentation(NAMES, seed=0, cmixup_alpha=1.0)
    rows = [blend(batch, epoch) for epoch in range(40)]
    assert all(torch.equal(found["vision"], batch["vision"]) for found in rows)
    assert all(found["audio"][0, 0, 0] == 1.0 for found in rows)
    assert len({found["audio"][1, 0, 0].item() for found in rows}) > 20
    assert not [found for found in rows if (found["audio"][1, 0, 0] - 2).abs() > 1 + 1e-6], "at least half of its own"


def test_whose_label_is_that_of_the_blend() -> None:
    batch = labelled([1, 2, 3], [0.0, 1.0, 2.0])
    found = {
        kind: Augmentation(NAMES, seed=1, cmixup_alpha=1.0, cmixup_bandwidth=5.0, cmixup_labels=kind)(batch, epoch=0)
        for kind in ("keep", "av", "all")
    }
    assert "head_labels" not in found["keep"]
    for kind in ("keep", "av"):
        assert torch.equal(found[kind]["labels"], batch["labels"])
    assert torch.equal(found["all"]["labels"], found["av"]["head_labels"]["av"])
    assert not torch.equal(found["all"]["labels"], batch["labels"])
    assert torch.equal(found["all"]["head_labels"]["text"], batch["labels"])


@pytest.mark.parametrize("asked", [{"modality_dropout": 0.1}, {"frame_dropout": 0.1}, {"cmixup_alpha": 1.0}])
def test_without_a_modality_there_is_nothing_to_change(asked: dict[str, Any]) -> None:
    settings = RunSettings.from_dict(asked)
    assert getattr(Augmentation.of(settings, NAMES, seed=1), *asked) == next(iter(asked.values()))
    with pytest.raises(
        ConfigError, match=f"{next(iter(asked))}: changes audio and vision, and this run reads no modality"
    ):
        Augmentation.of(settings, (), seed=1)
