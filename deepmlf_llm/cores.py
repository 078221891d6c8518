"""Cores that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores(quota: Path = _QUOTA) -> int:
    """Cores of this process: its affinity, and the time that a container's quota grants it.

    More threads than that wait for one another: under a quota of two cores, 16 threads take turns of milliseconds.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    granted, _, period = quota.read_text().strip().partition(" ") if quota.is_file() else ("max", "", "")
    if granted.isdigit() and period.isdigit() and int(period):
        cores = min(cores, max(1, int(granted) // int(period)))
    return cores
