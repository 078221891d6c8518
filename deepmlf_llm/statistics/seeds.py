"""What several seeds allow one to say about one number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deepmlf_llm.extras import require

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval (Student's t); without bounds where there is one value only."""

    mean: float
    half: float | None
    n: int

    @property
    def low(self) -> float:
        return self.mean - (self.half or 0.0)

    @property
    def high(self) -> float:
        return self.mean + (self.half or 0.0)

    @property
    def excludes_zero(self) -> bool:
        return self.half is not None and (self.low > 0 or self.high < 0)

    def text(self, digits: int = 3) -> str:
        """``0.712 ± 0.034``"""
        return f"{self.mean:.{digits}f}" + ("" if self.half is None else f" ± {self.half:.{digits}f}")


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Mean of independent values, and the interval ``mean ± t(n - 1) s / sqrt(n)``.

    Raises:
        MissingPackageError: scipy is not installed.
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Interval(mean, None, n)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    stdtrit = require("scipy.special", "an interval over seeds").stdtrit  # scipy.stats takes seconds to load
    return Interval(mean, float(stdtrit(n - 1, (1 + confidence) / 2)) * deviation / math.sqrt(n), n)
