"""Mirrors ``deepmlf_llm/planning/memory.py``, ``rates.py`` and ``advice.py``: against sums by hand."""

from __future__ import annotations

import pytest
import torch

from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.model.peft_model import DeepMLFModel
from deepmlf_llm.planning.advice import Choice, Planner, choices, recommend
from deepmlf_llm.planning.dry_step import Step, StepBytes
from deepmlf_llm.planning.geometries import planned_shape
from deepmlf_llm.planning.memory import Gathered, Layout, memory_rows
from deepmlf_llm.planning.parameters import gathered_weights
from deepmlf_llm.planning.rates import step_seconds

STEP = StepBytes(weights=10_000, trained=800, batch=50, peak=3000, kept=2500, gradients=800, text=0, operators=100)
GATHERED = Gathered(table=4000, module=700, layers=5000)


def expected(**layout):
    return {k: v.expected for k, v in memory_rows(STEP, Layout(**layout), 4, GATHERED, context=False).items()}


def test_what_each_stage_splits():
    alone, ddp = expected(processes=1), expected(processes=4)
    assert alone == {"weights": 10_000, "optimizer": 1600, "batch": 50, "step": 3000, "total": 14_650}
    assert ddp["total"] == alone["total"] + 800
    assert expected(processes=4, stage=1)["optimizer"] == 3 * 800 / 4
    second = expected(processes=4, stage=2)
    assert (second["weights"], second["gradients"], second["buckets"]) == (10_000, 200, 128)
    assert expected(processes=4, stage=2, offload_optimizer=True)["optimizer"] == 0
    third = expected(processes=4, stage=3)
    assert (third["weights"], third["gathered weights"]) == (2500, 5000 - 3000)  # as the text has been read
    assert expected(processes=4, stage=3, offload_weights=True)["weights"] == 0


def gathered_at(peak, layout=(4, 3), one_memory=False, **changes):
    step = StepBytes(**{**STEP.__dict__, "peak": peak, "weights": 10**12})
    gathered = Gathered(**{**GATHERED.__dict__, **changes})
    return memory_rows(step, Layout(*layout), 4, gathered, context=False, one_memory=one_memory)["gathered weights"]


def test_weights_are_gathered_module_by_module_and_the_embeddings_before_anything_else():
    assert gathered_at(10**6).expected == gathered_at(10**6).low == 700
    assert gathered_at(10**6, stays=True).expected == 5000 + 700
    assert gathered_at(10**6, layers=10**11, stays=True).expected == 10**9 + 700  # as far as they are soon read again
    assert gathered_at(10**6, module=4000).expected == 4000  # the LM's head has a loss of its own
    assert gathered_at(1000, layers=0).expected == 4000 - 1000
    assert gathered_at(1000, layers=0, one_memory=True).expected == 2.25 * 4000 - 1000  # gloo copies
    assert gathered_at(1000, (1, 3), one_memory=True).expected == 0  # one process has them whole
    assert gathered_at(10**6, table=10**10, layers=10**11).high == 42 * 10**9


def test_what_is_gathered_of_a_model(make):
    model = make()
    table = 4 * model.fused_decoder.decoder.embeddings.weight.numel()
    found = gathered_weights(model, torch.float32)
    assert (found.table, found.stays) == (table, False)
    sizes = [4 * p.numel() for p in model.fused_decoder.decoder.layers.parameters()]
    assert found.layers == sum(sizes)
    assert found.module >= max(sizes)
    assert gathered_weights(model, torch.bfloat16).table == table // 2
    assert gathered_weights(model, torch.float32, "nf4").layers < 0.2 * found.layers


def test_what_goes_to_a_cpu_is_beside_the_rest_where_a_cpu_computes():
    step = StepBytes(**{**STEP.__dict__, "largest": 60})

    def rows(**layout):
        found = memory_rows(step, Layout(4, **layout), 4, GATHERED, context=False, one_memory=True)
        return {k: v.expected for k, v in found.items()}

    plain, away = rows(stage=2), rows(stage=2, offload_optimizer=True)
    assert away["offload buffers"] == 800 / 4 + 2 * 60
    assert away["total"] == plain["total"] + away["offload buffers"]
    third = rows(stage=3, offload_optimizer=True, offload_weights=True)
    assert third["weights"] == 2500


def test_low_expected_and_high_are_in_order():
    for layout in (Layout(1), Layout(8), Layout(8, 2), Layout(8, 3, True, True)):
        for part in memory_rows(STEP, layout, 4, GATHERED).values():
            assert part.low <= part.expected <= part.high


def test_time_is_work_or_launches():
    work = step_seconds(1e15, 10, 1000)
    assert work.expected == pytest.approx(1e15 / (1e15 * 0.4))
    assert step_seconds(1e15, 10, 1000, batches=3).expected == pytest.approx(3 * work.expected)
    assert step_seconds(1e15, 10, 1000, recomputes=True).expected == pytest.approx(4 / 3 * work.expected)
    assert step_seconds(1.0, 1000, 1000).expected == pytest.approx(4e-3)
    assert step_seconds(1.0, 1000, 1000, packed_linears=100).expected == pytest.approx(4e-3 + 2 * 100 * 35 * 4e-6)


@pytest.fixture(scope="module")
def make():
    def model():
        shape = planned_shape("tiny-llama")
        shape.set_attn_implementation("sdpa")
        with torch.device("meta"):
            return DeepMLFModel(shape, DeepMLFConfig(fusion_layers="even:2", modalities={"audio": {"dim": 16}}))

    return model


def test_the_largest_batch_fits_and_one_far_larger_does_not(make):
    planner = Planner(make, torch.float32, Step(1, 20, {"audio": 30}), memory=20e6, on_gpu=False)
    choice = Choice(Layout(1), "none", False)
    largest = planner.largest_batch(choice)
    assert planner.checked(choice, largest)["total"].high <= 20e6 < planner.checked(choice, 2 * largest)["total"].high
    assert planner.rows(choice, 20)["total"].expected == pytest.approx(
        planner.checked(choice, 20)["total"].expected, rel=0.02
    )
    found, count, why = recommend(planner, [choice], largest)
    assert (found, count) == (choice, largest)
    assert "whole batch" in why
    found, count, why = recommend(planner, [choice], 10 * largest)
    assert (found, count) == (choice, largest)
    assert f"{largest} of {10 * largest}" in why
    planner.memory = 1e6
    assert recommend(planner, [choice], 1)[:2] == (None, 0)


def test_choices_begin_with_the_plain_one_and_respect_what_was_asked():
    names = [choice.name for choice in choices(8, "none", False, False)]
    assert names[0] == "DDP"
    assert names[-1] == "zero3_offload, nf4, checkpointing"
    assert not any("zero3" in choice.name for choice in choices(8, "none", False, whole=True))
    assert {choice.quantization for choice in choices(8, "none", False, False, packs=False)} == {"none"}
    assert {choice.quantization for choice in choices(8, "int8", False, False)} == {"int8"}
    assert all(choice.checkpointing for choice in choices(1, "none", True, False))
