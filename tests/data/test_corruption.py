"""Mirrors ``deepmlf_llm/data/corruption.py``."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from deepmlf_llm.data.corruption import Corrupted, Corruption, check_modalities, one_level_each, read_levels
from deepmlf_llm.data.dataset import PolarityDataset
from deepmlf_llm.data.ragged import Ragged
from deepmlf_llm.errors import ConfigError

IDS = [f"video{i // 3}_{i}" for i in range(400)]


def split(ids=IDS) -> PolarityDataset:
    frames = [np.full((5, 3), len(identity), np.float32) for identity in ids]
    features = {name: Ragged.from_sequences(frames, 3) for name in ("audio", "vision")}
    return PolarityDataset(ids, ["so"] * len(ids), np.zeros(len(ids)), features)


def test_the_share_is_met_and_a_larger_one_takes_more_of_the_same():
    absent = {
        share: {i for i in IDS if Corruption({"audio": share}).is_absent("audio", i)} for share in (0, 0.25, 0.5, 1)
    }
    assert not absent[0]
    assert len(absent[1]) == 400
    assert absent[0.25] < absent[0.5]
    assert abs(len(absent[0.5]) - 200) < 4 * np.sqrt(100)  # four deviations of a binomial
    vision = {i for i in IDS if Corruption({"vision": 0.5}).is_absent("vision", i)}
    other = {i for i in IDS if Corruption({"audio": 0.5}, seed=1).is_absent("audio", i)}
    for different in (vision, other):  # independent of each other: half of it is shared
        assert 60 < len(absent[0.5] & different) < 140


def test_noise_has_the_asked_deviation_and_spares_what_never_varied():
    noisy = Corruption(noise={"audio": 0.3})
    zeros = np.zeros((40, 3), np.float32)
    drawn = np.concatenate([noisy.frames("audio", i, zeros, [1]) for i in IDS[:60]])
    assert drawn.dtype == np.float32
    assert drawn[:, [0, 2]].std() == pytest.approx(0.3, rel=0.05)
    assert (drawn[:, 1] == 0).all()
    assert abs(drawn[:, 0].mean()) < 0.03
    twice = Corruption(noise={"audio": 0.6}).frames("audio", IDS[0], zeros)
    assert twice == pytest.approx(2 * noisy.frames("audio", IDS[0], zeros))
    assert noisy.frames("vision", IDS[0], zeros) is zeros


def test_it_depends_on_seed_and_id_alone():
    corruption = Corruption({"audio": 0.5}, {"vision": 0.2}, seed=3)
    whole = Corrupted(split(), corruption)
    few = Corrupted(split(IDS[100:110]), corruption)
    for row in range(10):
        a, b = whole[100 + row], few[row]
        assert len(a["audio"]) == len(b["audio"])
        assert (a["vision"] == b["vision"]).all()
    assert (whole[5]["vision"] == whole[5]["vision"]).all()
    assert whole[-1]["id"] == IDS[-1]
    code = (
        "from deepmlf_llm.data.corruption import Corruption; c = Corruption({'audio': .5}, seed=3);"
        f"print([c.is_absent('audio', i) for i in {IDS[:20]!r}])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert said == str([not len(whole[i]["audio"]) for i in range(20)])


def test_nothing_asked_is_nothing_done():
    plain, same = split(), Corrupted(split(), Corruption({"audio": 0.0}, {"vision": 0.0}))
    for row in (0, 7):
        assert all(np.array_equal(plain[row][name], same[row][name]) for name in ("audio", "vision"))
        assert {**plain[row], "audio": 0, "vision": 0} == {**same[row], "audio": 0, "vision": 0}
    assert (same.texts, same.ids, len(same)) == (plain.texts, plain.ids, 400)


def test_absence_is_counted_with_what_lacked_it_before():
    assert Corrupted(split(), Corruption({"audio": 1.0})).absent("audio") == 400
    assert Corrupted([{"id": "a"}, {"audio": np.ones((2, 3))}], Corruption()).absent("audio") == 1


def test_levels_are_read():
    assert read_levels(["audio=0:0.5:1", "vision=1"], "--missing") == {"audio": (0.0, 0.5, 1.0), "vision": (1.0,)}
    assert one_level_each(["audio=.5"])
    assert not one_level_each(["audio=0:1"])
    with pytest.raises(ConfigError) as caught:
        read_levels(["audio", "vision=2", "vision=x", "sound=-1", "a=0", "a=nan"], "--missing")
    for part in ("'audio': expected", "'vision=2'", "'vision=x'", "'vision' stands twice", "'sound=-1'", "'a=nan'"):
        assert part in str(caught.value)


def test_what_cannot_be_corrupted_is_named():
    facts = {"audio": {"dim": 3}, "vision": {"dim": 3, "standardisation": {"constant": [2]}}}
    assert check_modalities(Corruption({"audio": 0.5}, {"vision": 1}), facts, "x") == {"audio": [], "vision": [2]}
    with pytest.raises(ConfigError) as caught:
        check_modalities(Corruption({"visoin": 0.5, "text": 1.0}, {"audio": 1}), facts, "--missing")
    for part in ("did you mean 'vision'", "the text cannot be missing", "noise of 'audio' is in units"):
        assert part in str(caught.value)
