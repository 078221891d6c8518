"""The comparison runs to the end on toys and writes figures that agree with each other."""

import json
import subprocess
import sys

import pytest
import torch
from precision import STORAGES, measure_precision
from run import QUICK, Bench
from variants import LOOPS, VARIANTS, YARDSTICKS


@pytest.fixture(scope="module")
def quick(repository, tmp_path_factory):
    """One quick run: what it printed and what it wrote."""
    out = tmp_path_factory.mktemp("benchmark") / "run.json"
    command = [sys.executable, "benchmarks/run.py", "--quick", "--profile", "--output", str(out)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.timeout(960)
def test_ratios_follow_from_the_figures_beside_them(quick):
    _, result = quick
    ratios = result["ratios"]
    assert set(ratios) >= {"joint", "fusion", "fusion_cached", "memory_joint", "memory_fusion", "inference_shared_text"}
    assert all(value > 0 for value in ratios.values())
    for name in (*LOOPS, "yardstick_bf16"):
        facts = result["training"][name]
        assert ratios[name] == facts["ratio"]["median"]
        assert facts["ratio"]["low"] <= ratios[name] <= facts["ratio"]["high"]
        peaks = result["memory"]
        assert ratios[f"memory_{name}"] == peaks[name]["peak_bytes"] / peaks["yardstick"]["peak_bytes"]
        assert peaks[name]["peak_bytes"] >= peaks[name]["interpreter_bytes"]
        steps = facts["step_seconds"]
        assert facts["samples_per_second"]["median"] == pytest.approx(QUICK.batch / steps["median"])
    assert result["training"]["yardstick"]["step_seconds"]["n"] == QUICK.rounds * len(VARIANTS)
    for facts in result["text_cache"].values():
        assert 0 <= facts["share_of_step"] < 1
        assert facts["bytes"] > 0
    assert result["text_cache"]["fusion_cached_bf16"]["bytes"] < 0.6 * result["text_cache"]["fusion_cached"]["bytes"]
    assert ratios["inference_shared_text_bf16"] == result["inference"]["shared_text_bf16"]["ratio"]["median"]


@pytest.mark.slow
@pytest.mark.timeout(960)
def test_report_says_how_and_where_it_was_measured(quick):
    printed, result = quick
    assert "| training | samples/s (quartiles) | x yardstick |" in printed
    assert "Inference, shared_text: " in printed
    assert "Text cache, fusion_cached: " in printed
    assert set(result["memory"]) == {*YARDSTICKS, *LOOPS}
    assert {name.split(", ")[0] for name in result["assembly"]} == {"memory", "disk"}
    assert all(facts["seconds"] > 0 for facts in result["assembly"].values())
    narrow, wide = (result["assembly"][f"disk, {storage}"]["bytes"] for storage in ("int8", "float32"))
    assert 0 < narrow < 0.5 * wide
    assert set(result["profile"]) == set(result["arithmetic"]["training"]) == {"yardstick", *LOOPS}
    assert set(result["arithmetic"]["inference"]) == set(result["inference"])
    assert "| training, joint | " in printed
    assert set(result["method"]) >= {"time", "memory", "samples"}
    assert {"cpu", "threads", "packages", "git"} <= set(result["environment"])
    assert result["setting"]["base_model"] == "tiny-llama"


def test_every_variant_trains_as_many_weights_on_the_same_utterances():
    bench = Bench(QUICK)
    yardstick = bench.yardstick()
    loops = {name: bench.ours(name) for name in LOOPS}
    counts = {name: sum(p.numel() for p in loop.trainable()) for name, loop in loops.items()}
    counts["yardstick"] = sum(p.numel() for p in yardstick.trainable())
    own = {name: counts.pop(name) for name in LOOPS if LOOPS[name][0] in ("cached_frozen", "cached_best")}
    assert len(set(counts.values())) == 1
    tokens = yardstick.model.num_tokens * yardstick.model.lm.config.hidden_size
    assert own["cached_frozen"] == counts["yardstick"] - tokens
    assert own["cached_best"] <= counts["yardstick"]  # of seven MM Blocks; the toy has room for fewer than five
    texts = sorted(u["text"] for batch in bench.batches for u in batch)
    assert sorted(yardstick.batches.texts) == texts
    ids = {w.data_ptr() for loop in (yardstick, *loops.values()) for w in loop.trainable()}
    assert len(ids) == sum(len(loop.trainable()) for loop in (yardstick, *loops.values()))  # nothing trains twice


def test_cached_text_changes_no_prediction():
    bench = Bench(QUICK)
    torch.manual_seed(0)
    plain = bench.ours("fusion")
    torch.manual_seed(0)
    cached = bench.ours("fusion_cached")
    for loop in (plain, cached):
        loop.model.eval()
    batch = plain.batch(1)
    torch.testing.assert_close(plain.model(**batch).polarity, cached.model(**batch).polarity)
    assert len(cached.assembling.seconds) == 1


def test_a_narrower_cache_moves_polarities_a_little_and_is_put_back():
    torch.manual_seed(0)
    bench = Bench(QUICK)
    single, half = bench.ours("fusion_cached"), bench.ours("fusion_cached_bf16")
    single.epoch()
    expected = measure_precision(single, half)
    for loop in (single, half):  # as the inference part leaves them
        loop.model.enable_text_cache("memory", fusion_tokens=True)
        loop.predict(0)
    cache = single.model.fused_decoder.cache
    found = measure_precision(single, half)
    for name, facts in found.items():  # but for rounding: texts were read in other batches
        assert facts["mean"] == pytest.approx(expected[name]["mean"], rel=0.05)
    spread = found.pop("(spread of the polarities)")["mean"]
    assert set(found) == {*(f"text cache as {name}" for name in STORAGES), "LM and text cache in bfloat16"}
    assert all(0 < facts["mean"] <= facts["largest"] < spread for facts in found.values())
    assert found["text cache as float16"]["mean"] < found["text cache as bfloat16"]["mean"]
    assert single.model.fused_decoder.cache is cache


def test_gpu_run_says_in_one_sentence_that_there_is_none(repository):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    command = [sys.executable, "benchmarks/run.py", "--gpu"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "skipped: these benchmarks need a CUDA device, and torch sees none here."
