"""The parts of a report that look at each base model: how well it reads, how large it is, what changes within it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from deepmlf_llm.statistics.seeds import t_interval
from deepmlf_llm.study.blocks import Block, Paragraph, Table
from deepmlf_llm.study.configurations import BACKBONE, NOTHING, Configuration, axis_name
from deepmlf_llm.study.perplexity import bits_per_byte, perplexity
from deepmlf_llm.study.statistics import effects, reading, seeds_named, signed

_PERPLEXITY = (
    "Bits per byte of the training transcripts, read by the frozen LM without a question, compare LMs whose tokenizers "
    "differ; perplexity per word does, per token does not. Before each transcript stands the BOS token or a line "
    "break, whichever an LM reads better behind. An output layer that repeats the embedding is counted once; "
    "so is a base that was loaded with both. Text alone: runs without modalities."
)


_NONE_SHARED = "no configuration is common to all base models, and means of different ones would not compare."


def base_models(
    found: Sequence[Configuration], measured: Sequence[Mapping[str, Any]], axes: Sequence[str], metric: str
) -> list[Block]:
    """A row for each base model; nothing where there is one of which nothing is measured."""
    backbones = list(dict.fromkeys(c.backbone for c in found))
    if len(backbones) < 2 and not measured:
        return []
    shared = _shared(found, axes, metric)
    rows = []
    for backbone in sorted(backbones, key=lambda b: _size(found, b)):
        cells = [c for c in found if c.backbone == backbone]
        entry = measured_of(measured, backbone)
        alone = [c for c in cells if c.values.get("modalities") == NOTHING]
        fused = [c for c in cells if c.values.get("modalities") != NOTHING and _rest(c, axes) in shared]
        rows.append(
            [
                *backbone,
                f"{entry['parameters'] if entry else _size(found, backbone):,.0f}",
                f"{entry['layer_parameters']:,}" if entry else "",
                *((_short(bits_per_byte(entry)), *(_short(perplexity(entry, u)) for u in ("words", "tokens")))
                  if entry else ("", "", "")),
                *(_mean(side, metric) for side in (alone, fused)),
            ]
        )  # fmt: skip
    columns = ["base model", "LM layers", "LM parameters", "of them in layers", "bits per byte"]
    columns += ["perplexity per word", "per token", f"test {metric}, text alone", "fused"]
    which = "; ".join(shared.values())
    said = f"{_PERPLEXITY} Fused: " + (f"mean over what all base models have ({which})." if which else _NONE_SHARED)
    return [Paragraph(said), Table(columns, rows, range(1, len(columns)))]


def _shared(found: Sequence[Configuration], axes: Sequence[str], metric: str) -> dict[str, str]:
    """Fused configurations that all base models have which have any: what they differ in -> the same in words."""
    own: dict[Any, dict[str, str]] = {}
    others = [axis for axis in axes if axis not in BACKBONE]
    for c in found:
        if c.values.get("modalities") != NOTHING and c.by_seed(metric):
            own.setdefault(c.backbone, {})[_rest(c, axes)] = c.label(others) or "the one configuration"
    common = set.intersection(*map(set, own.values())) if own else set()
    return {key: label for key, label in next(iter(own.values()), {}).items() if key in common}


def _rest(c: Configuration, axes: Sequence[str]) -> str:
    """All settings but those of the backbone."""
    return c.rest("", [axis for axis in axes if axis not in BACKBONE])


def measured_of(measured: Sequence[Mapping[str, Any]], backbone: tuple[Any, ...]) -> Mapping[str, Any] | None:
    """What is known of a base model's reading."""
    return next((e for e in measured if tuple(e[name] for name in BACKBONE) == backbone), None)


def places(
    found: Sequence[Configuration], measured: Sequence[Mapping[str, Any]], metric: str
) -> dict[str, dict[Any, float]]:
    """Where each base model stands on the axes of :func:`~deepmlf_llm.study.plots.of_base_models`."""
    where: dict[str, dict[Any, float]] = {"lm_parameters": {}, "bits_per_byte": {}, "text_quality": {}}
    for backbone in dict.fromkeys(c.backbone for c in found):
        entry = measured_of(measured, backbone)
        where["lm_parameters"][backbone] = float(entry["parameters"]) if entry else _size(found, backbone)
        if entry:
            where["bits_per_byte"][backbone] = bits_per_byte(entry)
        cells = [c for c in found if c.backbone == backbone]
        alone = [value for c in cells if c.values.get("modalities") == NOTHING for value in c.by_seed(metric).values()]
        heads = alone or [value for c in cells for value in c.head("text", metric)]
        if heads:
            where["text_quality"][backbone] = math.fsum(heads) / len(heads)
    return where


def _size(found: Sequence[Configuration], backbone: tuple[Any, ...]) -> float:
    return next(c.lm_parameters for c in found if c.backbone == backbone)


def _short(value: float) -> str:
    if math.isinf(value):
        return "infinite"
    return f"{value:.3f}" if value < 10 else f"{value:,.1f}" if value < 1e5 else f"{value:.1e}"


def _mean(cells: Sequence[Configuration], metric: str) -> str:
    """Over the configurations that have all seeds, then over seeds."""
    found = [values for c in cells if (values := c.by_seed(metric))]
    seeds = sorted(set.intersection(*(set(values) for values in found))) if found else []
    means = [math.fsum(values[seed] for values in found) / len(found) for seed in seeds]
    return t_interval(means).text() if means else ""


def at_each(found: Sequence[Configuration], axes: Sequence[str], metric: str) -> list[Block]:
    """What changing one setting changed, at each base model apart; nothing where there is one."""
    backbones = list(dict.fromkeys(c.backbone for c in found))
    if len(backbones) < 2:
        return []
    rows = []
    for backbone in sorted(backbones, key=lambda b: _size(found, b)):
        here = [c for c in found if c.backbone == backbone]
        for effect in effects(here, [axis for axis in axes if axis not in BACKBONE], metric):
            change = effect.change
            rows.append(
                (
                    *backbone,
                    axis_name(effect.axis),
                    f"{effect.before} to {effect.after}",
                    effect.pairs,
                    signed(change),
                    reading(change),
                    seeds_named(change),
                )
            )
    if not rows:
        return []
    about = f"Of {len(rows)} such rows, one in twenty would exclude zero by chance alone."
    columns = ("base model", "LM layers", "setting", "from, to", "pairs", f"change of {metric}", "reading")
    return [Paragraph(about), Table((*columns, "seeds that would tell it"), rows, (1, 4, 5, 7))]
