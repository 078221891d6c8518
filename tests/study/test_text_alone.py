"""Mirrors ``deepmlf_llm/study/text_alone.py``, ``lm_tables.py`` and ``paper_claims.py``."""

from __future__ import annotations

import math
from typing import Any

import pytest
from scipy import stats

from deepmlf_llm.study.blocks import Table
from deepmlf_llm.study.configurations import Configuration, gather, varied
from deepmlf_llm.study.lm_tables import at_each, base_models, places
from deepmlf_llm.study.paper_claims import paper_claims
from deepmlf_llm.study.text_alone import fusion_over_text, what_to_beat

SEEDS = (1, 2, 3)
LMS = {"small": 100, "large": 1000}
CHANCE = (0.0, 0.01, -0.02)


def cell(base: str, modalities: str, blocks: int, tokens: int, mae: float) -> Configuration:
    """Seeds differ by :data:`CHANCE` alone, which a pair shares, and a little of its own."""
    values = {"base": base, "layers": 6, "modalities": modalities, "blocks": blocks, "num_fusion_tokens": tokens}
    records = {}
    for number, (seed, chance) in enumerate(zip(SEEDS, CHANCE, strict=True)):
        value = mae + chance + 0.001 * blocks * (number - 1)
        metrics = {"test": {"mae": value}, "validation": {"mae": value}, "heads": {"test": {"text": {"mae": 1.0}}}}
        train = {"parameters": {"total": LMS[base] + 7, "trainable": 7}}
        records[seed] = {"metrics": metrics, "train_info": train}
    return Configuration(values, records)


@pytest.fixture(scope="module")
def found() -> list[Configuration]:
    """Fusion gains .3, MM Blocks .02 each in the large LM and nothing in the small one, tokens nothing."""
    cells = []
    for base, gain in (("small", 0.0), ("large", 0.02)):
        level = 1.0 if base == "small" else 0.9
        cells.append(cell(base, "none", 5, 8, level + 0.3))
        cells += [cell(base, "audio + vision", blocks, n, level - gain * blocks) for blocks in (1, 5) for n in (4, 8)]
    return cells


AXES = ["base", "modalities", "blocks", "num_fusion_tokens"]


def table(blocks: list[Any]) -> list[dict[str, Any]]:
    (found,) = (block for block in blocks if isinstance(block, Table))
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


def test_fusion_is_paired_with_the_run_that_hears_nothing(found):
    rows = table(fusion_over_text(found, AXES, "mae"))
    assert [(row["base model"], row["pairs"], row["seeds"]) for row in rows] == [("small", 1, 3), ("large", 1, 3)]
    assert [row["change of mae"].split()[0] for row in rows] == ["-0.300", "-0.400"]
    assert {row["reading"] for row in rows} == {"a difference is shown"}
    assert fusion_over_text([c for c in found if c.values["modalities"] != "none"], AXES, "mae") == []


def test_settings_are_compared_within_each_base_model(found):
    rows = table(at_each(found, AXES, "mae"))
    depth = [row for row in rows if row["setting"] == "MM Blocks"]
    assert [(row["base model"], row["from, to"], row["pairs"]) for row in depth] == [
        ("small", "1 to 5", 2),
        ("large", "1 to 5", 2),
    ]
    assert [row["change of mae"].split()[0] for row in depth] == ["+0.000", "-0.080"]
    assert at_each([c for c in found if c.values["base"] == "small"], AXES, "mae") == []


def test_claims_hold_where_the_interval_says_so(found):
    rows = {(row["the paper"], row["here"].split(":")[0]): row for row in table(paper_claims(found, AXES, "mae"))}
    deep = rows["five to seven MM Blocks are best", "1 to 5 MM Blocks"]
    assert deep["reading"] == "holds here"  # -.04 as a mean over both LMs
    grown = rows["a larger LM is better", "small (6 layers) to large (6 layers)"]
    assert grown["change of mae"].startswith("-0.148")
    assert grown["reading"] == "holds here"
    pays = next(row for (claim, _), row in rows.items() if claim == "deeper fusion pays more in larger LMs")
    assert pays["change of mae"].startswith("-0.080 ± 0.000")
    assert pays["reading"] == "holds here"
    few = rows["8 to 20 fusion tokens are enough", "4 to 8 tokens"]
    assert few["reading"] == "cannot be told"


def test_an_absent_gain_is_not_shown_but_bounded(found):
    more = [cell("small", "audio + vision", 5, 20, 1.002), cell("small", "audio + vision", 5, 8, 1.0)]
    more[0].records[2]["metrics"]["test"]["mae"] += 0.01
    rows = table(paper_claims(more, ["num_fusion_tokens"], "mae"))
    few = next(row for row in rows if "more add nothing" in row["here"])
    changes = [b - a for a, b in zip(*(c.by_seed("mae").values() for c in reversed(more)), strict=True)]
    low = stats.t.interval(0.95, 2, math.fsum(changes) / 3, stats.sem(changes))[0]
    assert few["reading"] == f"cannot be told; a gain above {-low:.3f} is excluded"
    assert [row["reading"] for row in rows if row is not few] == ["cannot be told: not varied here"] * 3


def test_base_models_stand_by_size_with_what_is_measured(found):
    entry = {"base": "large", "layers": 6, "parameters": 900, "layer_parameters": 500, "nats": 80 * math.log(2)}
    entry |= {"bytes": 40, "words": 8, "tokens": 10, "utterances": 3}
    small, large = table(base_models(found, [entry], AXES, "mae"))
    assert (small["base model"], small["LM parameters"], small["bits per byte"]) == ("small", "100", "")
    assert (large["LM parameters"], large["of them in layers"], large["bits per byte"]) == ("900", "500", "2.000")
    assert (large["perplexity per word"], large["per token"]) == ("1,024.0", "256.0")
    assert small["test mae, text alone"].startswith("1.297")
    assert base_models(found[:3], [], AXES, "mae") == []
    where = places(found, [entry], "mae")
    assert where["lm_parameters"] == {("small", 6): 100.0, ("large", 6): 900.0}
    assert where["text_quality"][("large", 6)] == pytest.approx(1.2 + sum(CHANCE) / 3)


def test_fused_means_are_of_what_all_base_models_have(found):
    def fused(cells):
        paragraph, _ = blocks = base_models(cells, [], AXES, "mae")
        return paragraph.text, [row["fused"].split(" ")[0] for row in table(blocks)]

    deep = [c for c in found if c.values["blocks"] == 5 or c.values["base"] == "small"]
    deep = [c for c in deep if c.values["num_fusion_tokens"] == 8]
    text, means = fused(deep)
    assert text.endswith("Fused: mean over what all base models have (audio + vision, 5 MM Blocks, 8 fusion tokens).")
    assert means == ["0.997", "0.797"]  # with one MM Block beside, the small one's mean would be of other cells
    apart = [c for c in found if (c.values["blocks"] == 5) == (c.values["base"] == "small")]
    text, means = fused(apart)
    assert "no configuration is common to all base models" in text
    assert means == ["", ""]


def test_baselines_have_a_table_of_their_own_and_are_no_configurations():
    def record(seed: int, mae: float, **values: str) -> dict[str, Any]:
        run = {"values": {"base": "small", "layers": 6, **values}, "seed": seed}
        return {"status": "finished", "run_info": run, "metrics": {"test": {"mae": mae}}}

    records = [record(1, 0.9, baseline="ridge"), record(1, 0.7, blocks="2")]
    assert [c.values.get("blocks") for c in gather(records)] == ["2"]
    (row,) = table(what_to_beat(gather(records, baselines=True), ["mae"]))
    assert (row["baseline"], row["seeds"], row["test mae"]) == ("ridge", 1, "0.900")
    assert what_to_beat([], ["mae"]) == []


def test_layers_are_no_axis_where_the_base_model_says_them():
    def of(base: str, layers: int) -> Configuration:
        return Configuration({"base": base, "layers": layers})

    assert varied([of("a", 6), of("b", 9)]) == ["base"]
    assert varied([of("a", 6), of("b", 9), of("b", 12)]) == ["base", "layers"]
