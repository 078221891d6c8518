"""Mirrors ``deepmlf_llm/planning/operators.py``: against sums by hand."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn

from deepmlf_llm.planning.operators import OperatorWork, Work
from deepmlf_llm.planning.packed import pack


def seen(run) -> Counter[Work]:
    with OperatorWork() as work:
        run()
    return work.seen


def test_a_product_computes_and_reads_and_writes():
    x, y = torch.zeros(3, 4), torch.zeros(4, 5)
    assert seen(lambda: x @ y) == {Work(2 * 3 * 4 * 5, 4 * (12 + 20 + 15), narrow=False): 1}
    narrow, other = x.bfloat16(), y.bfloat16()
    assert seen(lambda: narrow @ other) == {Work(120, 2 * 47, narrow=True): 1}


def test_a_view_moves_nothing_and_what_is_only_seen_larger_is_read_once():
    x = torch.zeros(4, 1)
    assert seen(lambda: x.view(2, 2)) == {Work(0, 0, narrow=False): 1}
    large = x.expand(4, 100)
    assert seen(lambda: large + 1) == {Work(0, 4 * (4 + 400), narrow=False): 1}
    assert seen(lambda: x.add_(1)) == {Work(0, 4 * (4 + 4), narrow=False): 1}
    assert seen(lambda: torch.empty(100)) == {Work(0, 0, narrow=False): 1}


def test_a_packed_weight_is_made_whole_forward_and_backward():
    linear = nn.Linear(64, 32, bias=False).requires_grad_(False)
    pack(linear, "nf4")
    x = torch.zeros(2, 64, requires_grad=True)
    work = seen(lambda: linear(x).sum().backward())
    assert sum(one.unpacked * count for one, count in work.items()) == 2 * 64 * 32
    assert sum(one.flops * count for one, count in work.items()) == 2 * 2 * 2 * 64 * 32
