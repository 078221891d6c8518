"""Mirrors ``deepmlf_llm/planning/cpu_rates.py``: against sums by hand."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from deepmlf_llm.planning import cpu_rates
from deepmlf_llm.planning.cpu_rates import CpuRates, measure_cpu, step_seconds_on_cpu
from deepmlf_llm.planning.operators import Work

RATES = CpuRates(
    threads=1, flops=100, narrow_flops=400, moved=10, operator=0.5, unpacked=20, imported=1000, process=1500
)


def test_a_step_is_its_products_its_bytes_its_operators_and_the_update():
    work = Counter({Work(200, 30, narrow=False): 2, Work(200, 0, narrow=True): 1, Work(0, 10, False, unpacked=40): 3})
    products, moved, whole, operators = 2 * 2.0 + 0.5, 2 * 3.0 + 3 * 1.0, 3 * 2.0, 6 * 0.5
    forward_and_back = products + moved + whole + operators
    assert step_seconds_on_cpu(work, 5, RATES).expected == pytest.approx(forward_and_back + 7 * 5 / 10)
    twice = step_seconds_on_cpu(work, 5, RATES, batches=2)
    assert twice.expected == pytest.approx(2 * forward_and_back + 7 * 5 / 10)
    assert twice.low < twice.expected < twice.high


@pytest.mark.cpu
def test_a_machine_is_measured(monkeypatch):
    for name, size in {"_ROWS": 16, "_WIDTH": 64, "_WIDE": 64, "_BLOCK": 1 << 12, "_REPEATS": 2}.items():
        monkeypatch.setattr(cpu_rates, name, size)
    rates = measure_cpu()
    assert rates.threads == torch.get_num_threads()
    assert min(rates.flops, rates.narrow_flops, rates.moved) > 1e6
    assert 1e-7 < rates.operator < 1e-2
    assert 1e8 < rates.imported <= rates.process
    assert CpuRates(**rates.as_dict()) == rates
