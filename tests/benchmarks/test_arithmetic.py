"""FLOPs are those of the products that run, and the rate is one that this machine reaches."""

import pytest
import torch
from arithmetic import count_arithmetic, flops, matmul_rate
from run import QUICK, Bench
from variants import SHARED_TEXT

from deepmlf_llm.backbones.interface import Decoder


def test_flops_of_a_product_and_its_backward_pass():
    a, w = torch.randn(4, 8, requires_grad=True), torch.randn(8, 16, requires_grad=True)
    forward = 2 * 4 * 8 * 16
    assert flops(lambda: a @ w) == forward
    assert flops(lambda: (a @ w).sum().backward()) == 3 * forward
    with torch.no_grad():
        assert flops(lambda: a @ w) == forward


def test_a_rate_is_positive_in_either_dtype():
    assert all(matmul_rate(8, 16, 32, dtype, repeats=2) > 0 for dtype in (torch.float32, torch.bfloat16))


def test_each_saving_takes_arithmetic_out_of_a_step():
    bench = Bench(QUICK)
    loops = {name: bench.loop(name) for name in ("yardstick", "joint", "fusion", *SHARED_TEXT)}
    counted = count_arithmetic(loops, 1)
    training, inference = counted["training"], counted["inference"]
    assert training["yardstick"] > training["joint"] > training["fusion"] > training["fusion_cached"]
    assert inference["yardstick"] > inference["shared_text"]
    for counts, name in ((training, "fusion_cached"), (inference, "shared_text")):  # but for attention, see flops()
        assert counts[name] == pytest.approx(counts[f"{name}_bf16"], rel=0.1)
    # A frozen LM's backward pass costs what its forward pass does: the fusion tokens' whole way through it, twice.
    decoder = Decoder(loops["fusion_cached"].model.fused_decoder.decoder.lm)
    tokens = QUICK.batch * loops["yardstick"].model.num_tokens
    weights = sum(p.numel() for name, p in decoder.layers.named_parameters() if name.endswith("proj.weight"))
    assert training["fusion_cached"] > 2 * 2 * tokens * weights
