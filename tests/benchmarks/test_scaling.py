"""Sweeps: exponents from known laws, sizes that really move, figures that are really drawn."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scaling import STYLES, SWEEPS, Point, exponent, loop_at

from deepmlf_llm.backbones import load_base_model, load_tokenizer


@given(st.floats(0.1, 3), st.floats(1e-3, 1e3))
def test_exponent_of_a_power_law_is_its_own(power, factor):
    sizes = np.array([2.0, 4.0, 8.0, 32.0])
    assert exponent(sizes, factor * sizes**power) == pytest.approx(power, abs=1e-6)


@pytest.mark.parametrize("variant", list(STYLES))
def test_a_point_has_exactly_its_sizes(variant):
    point = Point(text=9, tokens=3, blocks=2, frames=7, batch=4)
    loop = loop_at(variant, point, load_base_model("tiny-llama", dtype="float32"), load_tokenizer("tiny-llama"))
    if variant == "yardstick":
        batch, _ = loop.batches.next()
        layers, tokens = loop.model.layers, loop.model.num_tokens
    else:
        batch = loop.batch(0)
        stack = loop.model.base_model.active_stack
        layers, tokens = stack.layers, stack.num_tokens
    assert batch["attention_mask"].shape == (4, 9)
    assert batch["attention_mask"].all()
    assert batch["audio"].shape[:2] == batch["vision"].shape[:2] == (4, 7)
    assert layers == [2, 3]
    assert tokens == 3


def test_sweeps_move_the_sizes_of_a_point():
    assert set(SWEEPS) == set(vars(Point()))
    assert all(sizes == sorted(sizes) for _, sizes in SWEEPS.values())
    looks = [(style["marker"], style["linestyle"]) for style in STYLES.values()]
    assert len(set(looks)) == len(STYLES)  # told apart without colour too


@pytest.mark.slow
@pytest.mark.timeout(960)
def test_command_writes_figures_and_plots(repository, tmp_path):
    out = tmp_path / "growth.json"
    command = [sys.executable, "benchmarks/scaling.py", "--quick", "--output", str(out), "--sweeps", "tokens", "batch"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert set(result["sweeps"]) == {"tokens", "batch"}
    for facts in result["sweeps"].values():
        assert set(facts["variants"]) == set(STYLES)
        assert all(len(line["points"]) == len(facts["sizes"]) == 3 for line in facts["variants"].values())
    assert "fusion_cached, p =" in out.with_suffix(".svg").read_text()
    assert "| p of FLOPs (between the two largest); p of seconds | yardstick | joint |" in done.stdout
    batch, tokens = (result["sweeps"][name]["variants"] for name in ("batch", "tokens"))
    # Twice the utterances are twice the work; the LM's text does not grow with n.
    assert all(line["flops_exponent"] == pytest.approx(1, abs=0.05) for line in batch.values())
    assert tokens["fusion_cached"]["flops_exponent"] > tokens["joint"]["flops_exponent"] > 0
