"""Mirrors ``deepmlf_llm/training/planned.py``; what is planned with it stands in tests/commands/test_plan.py."""

from __future__ import annotations

import pytest
import torch

from deepmlf_llm.backbones import load_base_model
from deepmlf_llm.backbones.loading import DTYPES
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.training.command_line import parse_settings
from deepmlf_llm.training.planned import Lengths, planned_kernel, run_planner
from tests.families import FAMILY_NAMES, tiny_family


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("asked", ["auto", "sdpa", "eager", "prefix"])
@pytest.mark.cpu
def test_a_plan_for_a_cpu_attends_as_the_run_does(asked: str, dtype: str) -> None:
    words = ["--base_model", "tiny-llama", "--dtype", dtype, "--attn_implementation", asked]
    config = DeepMLFConfig(fusion_layers="even:2", modalities={})
    planner = run_planner(parse_settings(words), config, Lengths(8, {}), 1, 1e9, on_gpu=False)
    base = load_base_model("tiny-llama", dtype=dtype, attn_implementation=asked)
    planned = planner.make().fused_decoder.decoder.lm.config._attn_implementation
    assert planned == base.config._attn_implementation


def test_what_is_planned_for_a_gpu_or_another_family() -> None:
    llama, caps = tiny_family("llama"), tiny_family("gemma2")
    assert planned_kernel(llama, "auto", torch.bfloat16, on_gpu=True) == "sdpa"
    assert planned_kernel(llama, "flash_attention_2", torch.bfloat16, on_gpu=True) == "sdpa"
    assert planned_kernel(llama, "auto", torch.bfloat16, on_gpu=False) == "prefix"
    for on_gpu in (True, False):
        assert planned_kernel(caps, "auto", torch.float32, on_gpu) == "eager"


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_family_has_a_kernel_that_the_cpu_run_takes(family: str) -> None:
    expected = "eager" if family == "gemma2" else "prefix"
    assert {planned_kernel(tiny_family(family), "auto", dtype, on_gpu=False) for dtype in DTYPES.values()} == {expected}
