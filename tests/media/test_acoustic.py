"""Mirrors ``media/acoustic.py`` and ``media/timeline.py``: against signals whose pitch and spectrum are known."""

from __future__ import annotations

import numpy as np
import pytest

from deepmlf_llm.media.acoustic import COLUMNS, prosody
from deepmlf_llm.media.speech import speech_spans
from deepmlf_llm.media.timeline import TimeBins
from tests.media.clips import tone


def columns(samples, *cuts):
    times, values = zip(*prosody(np.split(samples, list(cuts))), strict=True)
    return np.concatenate(times), dict(zip(COLUMNS, np.concatenate(values).T, strict=True))


@pytest.mark.parametrize("hertz", [90.0, 133.0, 200.0, 310.0])
def test_the_pitch_of_a_tone(hertz):
    _, found = columns(tone(1.0, hertz))
    inner = slice(5, -5)
    assert (found["voicing"][inner] > 0.9).all()
    assert 100 * 2 ** found["pitch"][inner] == pytest.approx(hertz, rel=0.01)


def test_noise_and_silence_have_no_pitch():
    noise = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    _, found = columns(noise)
    assert np.isnan(found["pitch"]).mean() > 0.95
    _, silent = columns(np.zeros(16000, np.float32))
    assert np.isnan(silent["pitch"]).all()
    assert not silent["voicing"].any()
    assert silent["energy"] == pytest.approx(-80.0)


def test_ten_times_the_amplitude_is_twenty_decibel():
    sound = tone(0.5) + np.random.default_rng(0).normal(0, 0.01, 8000).astype(np.float32)
    quiet, loud = (columns(sound * scale)[1] for scale in (0.2, 2.0))
    assert (loud["energy"] - quiet["energy"])[5:-5] == pytest.approx(20, abs=0.01)
    for name in ("alpha_ratio", "hammarberg", "centroid"):
        assert loud[name][5:-5] == pytest.approx(quiet[name][5:-5], abs=1e-2)


def test_the_spectrum_of_two_sines():
    t = np.arange(16000) / 16000
    low, high = (np.sin(2 * np.pi * hertz * t) for hertz in (500, 3000))
    _, found = columns((0.1 * low + 0.01 * high).astype(np.float32))
    inner = slice(5, -5)
    assert found["alpha_ratio"][inner] == pytest.approx(20, abs=0.2)
    assert found["hammarberg"][inner] == pytest.approx(20, abs=0.5)
    assert found["centroid"][inner] == pytest.approx((500 + 0.01 * 3000) / 1.01 / 1000, abs=0.01)


def test_blocks_change_nothing_and_frames_stand_every_ten_milliseconds():
    samples = (tone(1.0) + np.random.default_rng(1).normal(0, 0.01, 16000)).astype(np.float32)
    times, whole = columns(samples)
    assert times == pytest.approx(np.arange(100) * 0.01)
    cut_times, pieces = columns(samples, 37, 4000, 4100, 11111)
    np.testing.assert_array_equal(times, cut_times)
    for name in COLUMNS:
        np.testing.assert_allclose(pieces[name], whole[name], rtol=1e-6, err_msg=name)


def test_spans_are_means_of_what_falls_into_them():
    bins = TimeBins(2.0)
    bins.add(np.array([0.1, 0.4, 0.6]), np.array([[1.0, np.nan], [3.0, 5.0], [7.0, np.nan]]))
    bins.add(np.array([1.6]), np.array([[9.0, 4.0]]))
    expected = [[2, 5], [7, 0], [7, 0], [9, 4], [9, 4]]  # the empty third holds the second, the fifth the last
    np.testing.assert_array_equal(bins.frames(2.3), np.array(expected, np.float32))
    assert TimeBins(2.0).frames(1.0).shape == (0, 0)


def test_speech_is_where_it_is_loud():
    samples = np.concatenate([np.zeros(16000), tone(1.0), np.zeros(16000), tone(0.5), np.zeros(3200), tone(0.5)])
    samples += np.random.default_rng(0).normal(0, 1e-4, len(samples))
    (a, b), (c, d) = speech_spans(np.split(samples.astype(np.float32), [5000, 20001]))
    assert (a, b, c) == pytest.approx((0.9, 2.1, 2.9), abs=0.05)
    assert d == pytest.approx(len(samples) / 16000, abs=0.05)
    assert speech_spans([np.zeros(16000, np.float32)]) == []
    assert speech_spans([]) == []
    (whole,) = speech_spans([tone(1.0)])
    assert whole == pytest.approx((0.0, 1.0), abs=0.05)
