"""What the inference benchmark times is the predictor, with text forgotten or kept as it says."""

import json
import subprocess
import sys

import numpy as np
import pytest
from inference import VARIANTS, ask, forget, make_model, other_take, percentiles
from workload import Geometry, make_utterances

from deepmlf_llm.backbones import load_tokenizer
from deepmlf_llm.inference.predictor import SentimentPredictor

GEOMETRY = Geometry(frames=20)


def test_a_text_met_before_is_not_read_again_and_a_forgotten_one_is():
    model = make_model({}, "tiny-llama", GEOMETRY)
    predictor = SentimentPredictor(model, load_tokenizer("tiny-llama"))
    utterances = make_utterances(4, GEOMETRY)
    ask(predictor, utterances)
    kept = model.text_cache
    assert len(kept) == 4
    ask(predictor, [other_take(u, np.random.default_rng(0)) for u in utterances])
    assert model.text_cache is kept
    assert len(kept) == 4
    forget(model)
    assert len(model.text_cache) == 0


def test_another_take_has_the_same_words_and_other_features_of_the_same_shape():
    (utterance,) = make_utterances(1, GEOMETRY)
    other = other_take(utterance, np.random.default_rng(0))
    assert other["text"] == utterance["text"]
    assert other["audio"].shape == utterance["audio"].shape
    assert not np.allclose(other["audio"], utterance["audio"])


@pytest.mark.parametrize("name", [name for name in VARIANTS if "compiled" not in name])
def test_every_variant_answers(name):
    model = make_model(VARIANTS[name], "tiny-llama", GEOMETRY)
    utterances = make_utterances(3, GEOMETRY)
    ask(SentimentPredictor(model, load_tokenizer("tiny-llama")), utterances)
    kept = model.fused_decoder.cache
    keeps = not VARIANTS[name].get("lm_lora") or VARIANTS[name].get("merged", False)
    assert (kept is not None) is keeps
    assert not keeps or len(kept) == len({utterance["text"] for utterance in utterances})


def test_percentiles_are_milliseconds():
    assert percentiles([0.001, 0.002, 0.003]) == {"median": 2.0, "p95": pytest.approx(2.9), "n": 3}


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_its_figures(repository, tmp_path):
    out = tmp_path / "inference.json"
    asked = ["fp32", "bf16", "fp32, texts in int8"]
    command = [sys.executable, "benchmarks/inference.py", "--quick", "--variants", *asked, "--output", str(out)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    for facts in result["variants"].values():
        assert facts["latency_ms"]["new"]["median"] <= facts["latency_ms"]["new"]["p95"]
        assert facts["utterances_per_second"]["met"]["median"] > 0
    apart = {name: facts["difference"] for name, facts in result["variants"].items()}
    assert apart["fp32"] == {"mean": 0.0, "largest": 0.0}
    assert all(0 < apart[name]["mean"] <= apart[name]["largest"] for name in asked[1:])
    assert done.stdout.startswith("| model | one utterance, ms (median / p95) |")
