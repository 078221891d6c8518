"""What the GPU benchmark is made of, as far as a CPU can show it: random bases, and the operations that MFU counts."""

import json
import subprocess
import sys

import numpy as np
import on_gpu
import pytest
import torch
from gpu import MEASURED, Case, measure_case
from on_gpu import CASES, STEPS, Where
from variants import VARIANTS
from workload import make_utterance, with_token_ids

from deepmlf_llm.errors import ConfigError
from deepmlf_llm.planning.flops import StepGeometry, step_flops


@pytest.mark.parametrize("variant", ["joint", "fusion_cached", "cached_recipe"])
def test_needed_operations_are_the_planners_whatever_the_weights_are_packed_in(variant):
    """That the planner's are those that PyTorch counts is for its own tests; here each text counts with its length."""
    needed = {}
    for kind in ("float32", "nf4"):
        case, random = Case(f"tiny-llama:{kind}:2", "cpu", batches=1, utterances=40), np.random.default_rng(0)
        drawn = [make_utterance(words, case.geometry, random, f"u{i}", frames=20) for i, words in enumerate((2, 40))]
        utterances = with_token_ids(drawn, case.tokenizer, case.geometry.max_tokens)
        loop = case.loop(variant, case.base())
        needed[kind] = case.needed_flops(loop, utterances)
        if kind == "float32":  # of 4-bit weights the shapes are hidden
            lengths, frames = [len(u["input_ids"]) for u in utterances], {"audio": 20, "vision": 20}
            assert lengths[0] < lengths[1]
            each = [step_flops(loop.model, StepGeometry(1, n, frames), variant != "joint") for n in lengths]
            assert needed[kind] == sum(each)
    assert needed["nf4"] == needed["float32"]


@pytest.mark.parametrize("spec", ["llama-9b:nf4:8", "llama-8b:int3:8", "llama-8b:nf4", "llama-8b:nf4:1"])
def test_a_case_that_cannot_be_is_refused_by_name(spec):
    with pytest.raises(ConfigError, match=r"expected MODEL\[@LAYERS\]:KIND:BATCH"):
        Case(spec, "cpu")


def test_a_case_of_a_part_of_the_layers_says_what_to_expect_of_all():
    result = measure_case("tiny-llama@2:nf4:2", "cpu", rounds=1, peak_flops=1e9, variants=("yardstick", "joint"))
    assert result["scaled"] == "2 of 4 layers ran; of all of them expect 0.500 of the samples/s"
    assert set(result["variants"]) == {"joint"}, "the yardstick has no 4-bit form"
    assert result["variants"]["joint"]["mfu"] > 0


def test_everything_that_waits_for_a_gpu_runs_on_a_cpu_and_is_written_step_by_step(repository, tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, "benchmarks/on_gpu.py", "--device", "cpu", "--tiny", "--output", str(out)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    steps = json.loads(out.read_text())["steps"]
    assert list(steps) == [*(name for name in STEPS if name not in CASES), "tiny-llama:float32:4"]
    assert {name for name, facts in steps.items() if "error" in facts} == set(), steps
    assert {name for name, facts in steps.items() if "skipped" in facts} == {"tests", "deepspeed", "planner"}
    assert steps["ceilings"]["matmul_flops_bfloat16"] > 0
    assert all(facts["relative_error"] < 0.02 for name, facts in steps["four_bit"].items() if "rows" in name)
    assert any("scaled_dot_product" in name for name in steps["kernels"]["joint"]["names"])
    assert steps["kernels"]["joint"]["flash"] in (True, False)
    assert steps["launches"]["eager"]["batch of 2"]["ms"] > 0
    variants = steps["tiny-llama:float32:4"]["variants"]
    assert set(variants) == set(MEASURED)
    assert all(facts["samples_per_second"]["median"] > 0 for facts in variants.values())
    assert "tiny-llama:float32:4: done (" in done.stdout


def test_a_run_out_of_time_keeps_what_it_has_and_says_what_it_left(tmp_path, monkeypatch):
    monkeypatch.setattr(on_gpu, "in_own_process", lambda step, where, seconds: {"seconds": seconds})
    monkeypatch.setattr(on_gpu, "NO_TIME", 30.0)
    out = tmp_path / "gpu.json"
    result = on_gpu.run(["deepspeed", "ceilings"], Where("cpu", True), 0.1, out)
    assert all("not begun: " in facts["error"] for facts in result["steps"].values())
    result = on_gpu.run(["launches", "deepspeed", "four_bit"], Where("cpu", True), 9.0, out)
    assert result["steps"]["launches"]["seconds"] == on_gpu.MOST_SECONDS
    assert result["steps"]["deepspeed"]["skipped"] == "needs CUDA"
    assert json.loads(out.read_text())["steps"].keys() == {"launches", "deepspeed", "four_bit"}
    monkeypatch.setattr(on_gpu, "installed", lambda package: False)
    result = on_gpu.run(["four_bit"], Where("cpu", True), 9.0, None)
    assert result["steps"]["four_bit"]["skipped"] == "bitsandbytes is not installed"


def test_without_a_gpu_it_says_so_in_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["on_gpu.py"])
    assert on_gpu.main() == 0
    said = "skipped: these benchmarks need a CUDA device, and torch sees none here."
    assert capsys.readouterr().out.strip() == said


@pytest.mark.gpu
def test_a_case_measures_every_variant():
    result = measure_case("smollm2-135m:bfloat16:4", "cuda", 1, 1e14, ("yardstick", *VARIANTS))
    assert set(result["variants"]) == {"yardstick", *VARIANTS}
    for name, facts in result["variants"].items():
        assert facts["samples_per_second"]["median"] > 0
        assert facts["peak_bytes"] > 0
        assert name == "yardstick" or 0 < facts["mfu"] < 1
