from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from deepmlf_llm.training.augmentation import Augmentation
from deepmlf_llm.training.batching import INDEX

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
