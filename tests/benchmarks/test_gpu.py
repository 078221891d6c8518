"""What the GPU benchmark is made of, as far as a CPU can show it: random bases, and the operations that MFU counts."""

import json
import subprocess
import sys

import on_gpu
import pytest
import torch
from gpu import LLAMAS, MEASURED, Case, measure_case, needed_flops, random_llama
from on_gpu import CASES, STEPS, Where
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from variants import VARIANTS, OurLoop
from workload import Geometry, make_utterance, with_token_ids

from deepmlf_llm.backbones import load_tokenizer
from deepmlf_llm.backbones.quantization import is_quantized
from deepmlf_llm.errors import ConfigError

SIZES = {
    "vocab_size": 320,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
GEOMETRY = Geometry(max_tokens=24, frames=4, modalities={"audio": 4})


class Drawn(TorchDispatchMode):
    """Counts the values that are drawn."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        drawn = func is torch.ops.aten.normal_.default and not args[0].is_meta
        self.values += args[0].numel() if drawn else 0
        return func(*args, **(kwargs or {}))


def make_loop(lm, variant, batch=4):
    """A batch without padding: every text is as long as the limit."""
    import numpy as np

    tokenizer, random = load_tokenizer("tiny-llama"), np.random.default_rng(0)
    drawn = [make_utterance(40, GEOMETRY, random, f"u{i}", frames=4) for i in range(batch)]
    utterances = with_token_ids(drawn, tokenizer, GEOMETRY.max_tokens)
    return OurLoop(lm, tokenizer, [utterances], GEOMETRY, *VARIANTS[variant], num_tokens=6, rank=8)


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_needed_operations_are_those_that_pytorch_counts(variant):
    loop = make_loop(random_llama(SIZES, "float32", "cpu"), variant)
    loop.step(0)  # after which frozen tokens are kept
    with FlopCounterMode(display=False) as counter:
        loop.step(0)
    counted = sum(flops for op, flops in counter.get_flop_counts()["Global"].items() if "attention" not in str(op))
    layers = loop.model.base_model.active_stack.layers
    needed = needed_flops(loop.model.config, variant, 4 * 24, 4 * 6, layers, 8)
    assert needed == pytest.approx(counted, rel=0.05)


def test_random_llama_is_a_finite_decoder_with_tied_or_own_logits():
    lm = random_llama({**SIZES, "tie_word_embeddings": True}, "float32", "cpu")
    ids = torch.arange(12).reshape(2, 6)
    assert lm(ids).logits.isfinite().all()
    assert lm.lm_head.weight.data_ptr() == lm.model.embed_tokens.weight.data_ptr()
    assert not any(p.requires_grad or p.is_meta for p in lm.parameters())
    assert not any(b.is_meta for b in lm.buffers())
    own = random_llama(SIZES, "float32", "cpu")
    assert own.lm_head.weight.data_ptr() != own.model.embed_tokens.weight.data_ptr()


def test_random_nf4_llama_trains_a_step():
    with Drawn() as drawn:
        lm = random_llama(SIZES, "nf4", "cpu")
    assert is_quantized(lm)
    packed = sum(p.numel() * p.element_size() for layer in lm.model.layers for p in layer.parameters())
    dense = 8 * (256 * (2 * 256 + 2 * 128) + 3 * 256 * 640)
    assert packed < 0.3 * 2 * dense
    assert drawn.values == dense + 2 * 320 * 256  # once each: what is packed has no dense twin that fills a device
    loop = make_loop(lm, "joint")
    before = [p.clone() for p in loop.trainable()]
    assert loop.step(0) == 4
    assert all(p.isfinite().all() for p in loop.trainable())
    assert any(not torch.equal(old, new) for old, new in zip(before, loop.trainable(), strict=True))


def test_geometries_are_the_known_models():
    from transformers import LlamaConfig, LlamaForCausalLM

    billions = {}
    for name, sizes in LLAMAS.items():
        if name == "tiny":
            continue
        with torch.device("meta"):
            lm = LlamaForCausalLM(LlamaConfig(**sizes))
        lm.tie_weights()
        billions[name] = sum(p.numel() for p in lm.parameters()) / 1e9
    expected = {"smollm2-135m": 0.1345, "llama-1b": 1.236, "llama-8b": 8.03, "llama-70b": 70.55}
    assert billions == pytest.approx(expected, rel=0.002)


@pytest.mark.parametrize("spec", ["llama-9b:nf4:8", "llama-8b:int3:8", "llama-8b:nf4", "llama-8b:nf4:1"])
def test_a_case_that_cannot_be_is_refused_by_name(spec):
    with pytest.raises(ConfigError, match=r"expected MODEL\[@LAYERS\]:KIND:BATCH"):
        Case(spec, "cpu")


def test_a_case_of_a_part_of_the_layers_says_what_to_expect_of_all():
    result = measure_case("tiny@2:nf4:2", "cpu", rounds=1, peak_flops=1e9, variants=("yardstick", "joint"))
    assert result["scaled"] == "2 of 4 layers ran; of all of them expect 0.500 of the samples/s"
    assert set(result["variants"]) == {"joint"}, "the yardstick has no 4-bit form"
    assert result["variants"]["joint"]["mfu"] > 0


def test_everything_that_waits_for_a_gpu_runs_on_a_cpu_and_is_written_step_by_step(repository, tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, "benchmarks/on_gpu.py", "--device", "cpu", "--tiny", "--output", str(out)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    steps = json.loads(out.read_text())["steps"]
    assert list(steps) == [*(name for name in STEPS if name not in CASES), "tiny:float32:4"]
    assert {name for name, facts in steps.items() if "error" in facts} == set(), steps
    assert {name for name, facts in steps.items() if "skipped" in facts} == {"tests", "deepspeed", "planner"}
    assert steps["ceilings"]["matmul_flops_bfloat16"] > 0
    assert all(facts["relative_error"] < 0.02 for name, facts in steps["four_bit"].items() if "rows" in name)
    assert any("scaled_dot_product" in name for name in steps["kernels"]["joint"]["names"])
    assert steps["kernels"]["joint"]["flash"] in (True, False)
    assert steps["launches"]["eager"]["batch of 2"]["ms"] > 0
    variants = steps["tiny:float32:4"]["variants"]
    assert set(variants) == set(MEASURED)
    assert all(facts["samples_per_second"]["median"] > 0 for facts in variants.values())
    assert "tiny:float32:4: done (" in done.stdout


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
