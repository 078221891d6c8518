"""The row that every report of a multimodal model needs: what the text alone says, by its own head."""

from __future__ import annotations

import math
from collections.abc import Sequence

from deepmlf_llm.statistics.seeds import t_interval
from deepmlf_llm.study.blocks import Block, Paragraph, Table
from deepmlf_llm.study.configurations import Configuration

_ABOUT = (
    "The text alone: the text head on the last token's state, trained beside the rest, as a mean over the "
    "configurations of a backbone, then mean and interval over seeds. What a configuration gains over this row comes "
    "from fusion tokens, MM Blocks, audio and vision together; a run without modalities or a baseline tells them apart."
)


def text_alone(found: Sequence[Configuration], metrics: Sequence[str]) -> list[Block]:
    """A row for each backbone; nothing where no cell has a text head.

    Args:
        found: the configurations.
        metrics: of the test split, in the order of the columns.
    """
    backbones = dict.fromkeys((c.values.get("base"), c.values.get("layers")) for c in found)
    rows = []
    for base, layers in backbones:
        cells = [c for c in found if (c.values.get("base"), c.values.get("layers")) == (base, layers)]
        texts = [_over_seeds(cells, metric) for metric in metrics]
        if any(texts):
            rows.append([base, layers, *(text or "undefined" for text in texts)])
    if not rows:
        return []
    columns = ["base model", "LM layers", *(f"test {metric}" for metric in metrics)]
    return [Paragraph(_ABOUT), Table(columns, rows, range(1, len(columns)))]


def _over_seeds(cells: Sequence[Configuration], metric: str) -> str:
    by_seed: dict[int, list[float]] = {}
    for cell in cells:
        for seed, record in cell.records.items():
            value = record["metrics"]["heads"]["test"].get("text", {}).get(metric)
            if value is not None:
                by_seed.setdefault(seed, []).append(value)
    means = [math.fsum(values) / len(values) for _, values in sorted(by_seed.items())]
    return t_interval(means).text() if means else ""
