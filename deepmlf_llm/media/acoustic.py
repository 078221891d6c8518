"""Prosody by arithmetic alone: how loud, how high, how voiced, how bright. No weights, no licence to mind.

A frame of 40 ms every 10 ms. Pitch: normalised autocorrelation with an octave cost (Boersma 1993, "Accurate short-term
analysis of the fundamental frequency"). Alpha ratio, Hammarberg index and spectral slopes: as defined for eGeMAPS
(Eyben et al. 2016, doi 10.1109/TAFFC.2015.2457417), computed here on the power spectrum.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from deepmlf_llm.media.decode import SAMPLE_RATE

VERSION = 1
HOP, LENGTH = SAMPLE_RATE // 100, SAMPLE_RATE // 25  # samples
COLUMNS = (
    "energy",  # dB of full scale
    "voicing",  # height of the autocorrelation's peak, 0 to 1
    "pitch",  # octaves above 100 Hz; NaN where there is no voice
    "alpha_ratio",  # dB, 50 to 1000 Hz against 1 to 5 kHz
    "hammarberg",  # dB, strongest below 2 kHz against strongest in 2 to 5 kHz
    "slope_0_500",  # dB a Hz
    "slope_500_1500",  # dB a Hz
    "centroid",  # kHz
    "flatness",  # dB, geometric over arithmetic mean of the power spectrum
)
_LOWEST, _HIGHEST = 75.0, 500.0  # Hz
_OCTAVE_COST, _VOICED = 0.01, 0.45
_SILENT = 1e-8  # mean square: -80 dB
_FFT = 1024


def prosody(blocks: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Frames of sound that comes in blocks; the same as if it came at once.

    Args:
        blocks: float32 [samples] at 16 kHz, one after the other.

    Yields:
        Times of the frames' middles (s) [t], values [t x 9] in the order of :data:`COLUMNS`.
    """
    held = np.zeros(LENGTH // 2, dtype=np.float32)  # so that the first frame's middle is the first sample
    first = 0

    def ready(samples: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        nonlocal held, first
        held = np.concatenate([held, samples])
        count = (len(held) - LENGTH) // HOP + 1
        if count > 0:
            times = (first + np.arange(count)) * HOP / SAMPLE_RATE
            yield times, _describe(np.lib.stride_tricks.sliding_window_view(held, LENGTH)[::HOP][:count])
            held, first = held[count * HOP :], first + count

    total = 0
    for block in blocks:
        total += len(block)
        yield from ready(block)
    if total:  # frames whose middles lie before the end
        yield from ready(np.zeros(LENGTH // 2 - 1, dtype=np.float32))


def _describe(frames: np.ndarray) -> np.ndarray:
    """[t x 640] samples -> [t x 9]."""
    frames = frames.astype(np.float64)
    mean_square = np.mean(frames**2, axis=1)
    window = np.hanning(LENGTH)
    power = np.abs(np.fft.rfft(frames * window, _FFT)) ** 2 / np.sum(window**2) / LENGTH + 1e-14
    hertz = np.fft.rfftfreq(_FFT, 1 / SAMPLE_RATE)
    decibel = 10 * np.log10(power)

    def band(low: float, high: float) -> np.ndarray:
        return (hertz >= low) & (hertz < high)

    def slope(low: float, high: float) -> np.ndarray:
        chosen = band(low, high)
        x = hertz[chosen] - hertz[chosen].mean()
        return decibel[:, chosen] @ x / np.sum(x**2)

    voicing, pitch = _pitch(frames, window, mean_square)
    alpha = 10 * np.log10(power[:, band(50, 1000)].sum(1) / power[:, band(1000, 5000)].sum(1))
    hammarberg = decibel[:, band(0, 2000)].max(1) - decibel[:, band(2000, 5000)].max(1)
    centroid = power @ hertz / power.sum(1) / 1000
    flatness = decibel.mean(1) - 10 * np.log10(power.mean(1))
    energy = 10 * np.log10(mean_square + _SILENT)
    columns = (energy, voicing, pitch, alpha, hammarberg, slope(0, 500), slope(500, 1500), centroid, flatness)
    return np.stack(columns, axis=1).astype(np.float32)


def _pitch(frames: np.ndarray, window: np.ndarray, mean_square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Strength of the voice [t], and octaves above 100 Hz [t], NaN where it is none."""
    size = 2 * _FFT
    centred = (frames - frames.mean(1, keepdims=True)) * window

    def correlation(x: np.ndarray) -> np.ndarray:
        return np.fft.irfft(np.abs(np.fft.rfft(x, size)) ** 2, size)

    of_window = correlation(window)
    lags = np.arange(int(SAMPLE_RATE / _HIGHEST), int(SAMPLE_RATE / _LOWEST) + 1)
    own = correlation(centred)
    around = slice(lags[0] - 1, lags[-1] + 2)
    near = own[:, around] / np.maximum(own[:, :1], 1e-12) / (of_window[around] / of_window[0])
    is_peak = (near[:, 1:-1] >= near[:, :-2]) & (near[:, 1:-1] >= near[:, 2:])
    cost = _OCTAVE_COST * np.log2(_LOWEST * lags / SAMPLE_RATE)
    best = np.argmax(np.where(is_peak, near[:, 1:-1] - cost, -1.0), axis=1)
    rows = np.arange(len(frames))
    before, at, after = (near[rows, best + shift] for shift in range(3))
    bend = before - 2 * at + after
    offset = np.where(bend < 0, 0.5 * (before - after) / np.where(bend < 0, bend, 1.0), 0.0)
    strength = np.where(is_peak[rows, best] & (mean_square > _SILENT), np.clip(at, 0.0, 1.0), 0.0)
    hertz = SAMPLE_RATE / (lags[best] + np.clip(offset, -1, 1))
    return strength, np.where(strength > _VOICED, np.log2(hertz / 100.0), np.nan)
