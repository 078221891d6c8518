"""Where it is not quiet, by loudness alone: spans to cut a recording at where nobody wrote down what was said."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from deepmlf_llm.media.decode import SAMPLE_RATE

_STEP = SAMPLE_RATE // 50  # samples
_ABOVE_FLOOR, _QUIETEST = 12.0, -45.0  # dB
_PAUSE, _SHORTEST, _MARGIN = 0.5, 0.25, 0.1  # s


def speech_spans(blocks: Iterable[np.ndarray]) -> list[tuple[float, float]]:
    """Spans (s) that are louder than the background; pauses of less than half a second do not end one.

    Args:
        blocks: 16 kHz mono samples, one after the other.
    """
    levels: list[np.ndarray] = []
    held = np.empty(0, dtype=np.float32)
    for block in blocks:
        held = np.concatenate([held, block])
        whole = len(held) // _STEP * _STEP
        levels.append((held[:whole].reshape(-1, _STEP).astype(np.float64) ** 2).mean(1))
        held = held[whole:]
    energy = np.concatenate(levels) if levels else np.empty(0)
    if not len(energy):
        return []
    decibel = 10 * np.log10(energy + 1e-10)
    floor = np.percentile(decibel, 10)
    # Speech without a pause has no background in it: what is loud by itself is no silence.
    loud = decibel > min(max(floor + _ABOVE_FLOOR, _QUIETEST), max(decibel.max() - _ABOVE_FLOOR, _QUIETEST))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], loud.astype(int), [0]])))
    spans: list[list[float]] = []
    for first, last in edges.reshape(-1, 2) * _STEP / SAMPLE_RATE:
        if spans and first - spans[-1][1] < _PAUSE:
            spans[-1][1] = float(last)
        else:
            spans.append([float(first), float(last)])
    end = len(energy) * _STEP / SAMPLE_RATE
    return [
        (round(max(first - _MARGIN, 0.0), 3), round(min(last + _MARGIN, end), 3))
        for first, last in spans
        if last - first >= _SHORTEST
    ]
