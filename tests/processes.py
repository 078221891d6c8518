"""Programs that tests start or look for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Done:
    """How a program ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def at_work(folder: Path, but: str | None = None) -> list[str]:
    """Command lines that name ``folder``, of processes that have not ended; without those that say ``but``. Linux."""
    lines = []
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes().decode(errors="replace") if entry.name.isdigit() else ""
        except OSError:
            continue
        if str(folder) in line and (but is None or but not in line):
            lines.append(line)
    return lines
