"""What a study is about to run: its cells, sized, before anything is started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from deepmlf_llm.errors import ConfigError, Problems

if TYPE_CHECKING:
    from deepmlf_llm.study.grid import Grid


@dataclass
class PlannedCell:
    """One run of the study.

    Args:
        name: readable, and unique; its folder's name.
        fingerprint: of settings, data and code.
        settings: for the training recipe, as given (dotted).
        values: what the report sorts by: base, layers, blocks, placement, and the row's own settings.
        seed: of the run.
        processes: that it trains with.
        trainable, total: parameters, unquantized.
        step_flops: see :mod:`~deepmlf_llm.planning.flops`.
        steps: optimizer steps, at most.
        geometry: that the FLOPs are for.
        text_key: cells with the same one read the same texts through the same layers.
    """

    name: str
    fingerprint: str
    settings: dict[str, Any]
    values: dict[str, Any]
    seed: int
    processes: int
    trainable: int
    total: int
    step_flops: int
    steps: int
    geometry: dict[str, Any]
    text_key: str

    @property
    def work(self) -> float:
        """FLOPs of all its steps."""
        return float(self.step_flops) * self.steps

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Plan:
    """A study's cells, and what was left out or stands in.

    Args:
        grid: that they come from.
        code: version of the training code.
        cells: in the grid's order.
        excluded: name of an exclusion -> cells that it left out.
        notes: sentences for the report.
    """

    grid: Grid
    code: str
    cells: list[PlannedCell]
    excluded: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def only(self, patterns: Sequence[str]) -> Plan:
        """With the cells whose name fits one of the patterns of a shell; of no pattern the plan itself.

        Raises:
            ConfigError: a pattern that fits none.
        """
        problems = Problems(ConfigError, "--only")
        for pattern in patterns:
            fits = any(fnmatchcase(cell.name, pattern) for cell in self.cells)
            problems.check(fits, f"{pattern!r} fits no cell; --plan lists them")
        problems.raise_if_any()
        kept = [c for c in self.cells if not patterns or any(fnmatchcase(c.name, pattern) for pattern in patterns)]
        return replace(self, cells=kept)
