"""Cells on GPUs by what they take: as many at once as fit, by the high estimate of :mod:`deepmlf_llm.planning`.

Where a GPU's memory is not known (no ``nvidia-smi``, one that does not answer), each GPU runs one cell at a time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from deepmlf_llm.study.cell_process import Slot
from deepmlf_llm.study.cells import PlannedCell

_MIB = 2**20


@dataclass(frozen=True)
class GpuMemory:
    """What there is, and what cells take.

    Args:
        free: GPU (as slots number them) -> bytes; empty: not known.
        needs: cell -> bytes on each of its GPUs, at most.
    """

    free: Mapping[int, int] = field(default_factory=dict)
    needs: Mapping[str, int] = field(default_factory=dict)

    def slot_for(
        self, cell: PlannedCell, free: Sequence[Slot], running: Sequence[tuple[PlannedCell, Slot]]
    ) -> Slot | None:
        """The first free slot whose GPUs have room beside what runs there.

        A cell that fits nowhere gets GPUs of its own: the estimate is a high one, and the run says what it lacks.

        Args:
            cell: that shall start.
            free: slots.
            running: cells and their slots.
        """
        return next((slot for slot in free if self._fits(cell, slot, running)), None)

    def _fits(self, cell: PlannedCell, slot: Slot, running: Sequence[tuple[PlannedCell, Slot]]) -> bool:
        for gpu in slot.gpus:
            there = [other for other, place in running if gpu in place.gpus]
            together = [self.needs.get(each.name) for each in [cell, *there]]
            if there and (None in together or sum(map(int, filter(None, together))) > self.free.get(gpu, 0)):
                return False
        return True

    def most(self, processes: int, gpus: int) -> int | None:
        """Cells that may run at once if all were as small as the smallest; None: one a GPU.

        Args:
            processes: of a cell; several of them are a cell that keeps its GPUs to itself.
            gpus: how many there are.
        """
        smallest = min(self.needs.values(), default=0)
        if processes > 1 or not self.free or smallest <= 0:
            return None
        return max(gpus, sum(size // smallest for size in self.free.values()))


def free_memory(gpus: int) -> dict[int, int]:
    """Free bytes of each GPU that this process sees, by its number here; empty where they cannot be known.

    Asks ``nvidia-smi``: PyTorch would take half a gigabyte of each GPU for asking.

    Args:
        gpus: how many this process sees.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    query = [program, "--query-gpu=index,uuid,memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
        lines = [[word.strip() for word in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
        by_name = {name: int(mib) * _MIB for index, uuid, mib in lines for name in (index, uuid)}
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return {}
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(number) for number in range(gpus)] if given is None else [name.strip() for name in given.split(",")]
    found = {number: by_name[name] for number, name in enumerate(names[:gpus]) if name in by_name}
    return found if len(found) == gpus else {}
