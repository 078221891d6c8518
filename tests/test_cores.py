"""Mirrors ``deepmlf_llm/cores.py``."""

from __future__ import annotations

import os

import pytest

from deepmlf_llm.backbones import cpu
from deepmlf_llm.cores import usable_cores
from deepmlf_llm.study import cell_process
from deepmlf_llm.training import environment


@pytest.mark.parametrize(("quota", "most"), [("200000 100000\n", 2), ("50000 100000\n", 1), ("max 100000\n", None)])
def test_cores_are_those_that_affinity_and_quota_leave(tmp_path, monkeypatch, quota, most):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    (tmp_path / "cpu.max").write_text(quota)
    assert usable_cores(tmp_path / "cpu.max") == (most or 8)
    assert usable_cores(tmp_path / "none") == 8


@pytest.mark.parametrize("module", [cpu, cell_process, environment])
def test_all_who_count_cores_count_the_same(module):
    assert module.usable_cores is usable_cores
