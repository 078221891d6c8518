"""How many examples a property is tried on: a third of what its test names, all of them where
``$DEEPMLF_ALL_EXAMPLES`` is set, as in the GitHub workflow."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings

VARIABLE = "DEEPMLF_ALL_EXAMPLES"


def examples(count: int) -> Any:
    """Decorates a test of a property."""
    tried = count if os.environ.get(VARIABLE) else max(1, count // 3)
    return settings(max_examples=tried, suppress_health_check=list(HealthCheck))
