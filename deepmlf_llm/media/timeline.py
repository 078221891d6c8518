"""Values at any times become frames at a steady rate, while they come."""

from __future__ import annotations

import numpy as np


class TimeBins:
    """Means over the spans [k / rate, (k + 1) / rate).

    What is not a number counts for nothing, column by column: the pitch of a span is that of its voiced frames, and 0
    where it has none.

    Args:
        rate: spans a second (Hz).
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._frames: list[np.ndarray] = []  # of the spans that are over: a film of hours has many
        self._span = -1
        self._sum = self._count = np.zeros(0)

    def add(self, times: np.ndarray, values: np.ndarray) -> None:
        """Takes values [t x d] at their times (s) [t], which never go back into a span that is over."""
        spans = np.floor(times * self.rate + 1e-6).astype(int)
        there = np.isfinite(values)
        filled = np.where(there, values, 0.0)
        for span in np.unique(spans):
            if span != self._span:
                self._close()
                self._span, self._sum, self._count = int(span), np.zeros(values.shape[1]), np.zeros(values.shape[1])
            self._sum = self._sum + filled[spans == span].sum(0, dtype=np.float64)
            self._count = self._count + there[spans == span].sum(0)

    def _close(self) -> None:
        """Ends the span that is open; spans before it that nothing fell into hold what the one before them does."""
        if self._span < 0:
            return
        mean = np.divide(self._sum, self._count, out=np.zeros_like(self._sum), where=self._count > 0).astype(np.float32)
        missing = self._span - len(self._frames)
        self._frames += [self._frames[-1] if self._frames else mean] * missing + [mean]
        self._span = -1

    def frames(self, duration: float) -> np.ndarray:
        """float32 [ceil(duration x rate) x d]; a span that nothing fell into holds what the one before it does."""
        self._close()
        if not self._frames:
            return np.empty((0, 0), dtype=np.float32)
        length = max(int(np.ceil(duration * self.rate - 1e-6)), 1)
        kept = self._frames[:length]
        return np.stack(kept + kept[-1:] * (length - len(kept)))
